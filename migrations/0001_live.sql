-- The cached connections and bindings, their clients, and the runs of the daemon. The names of
-- tables and columns are a public interface. Times are seconds since the epoch. Labels and
-- properties are TEXT with any bytes but NUL.

-- The runs of the daemon on this database.
CREATE TABLE instance (
    id INTEGER PRIMARY KEY,
    started_at REAL NOT NULL,
    stopped_at REAL,              -- NULL while it runs, and for ever if it crashed
    version TEXT NOT NULL,
    pid INTEGER NOT NULL,
    last_id INTEGER NOT NULL      -- no connection, binding or client of this run has a higher id
) STRICT;

-- The clients: one row for each process that connected. Rows of disconnected clients are deleted,
-- the oldest first.
CREATE TABLE client (
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    connected_at REAL NOT NULL,
    disconnected_at REAL          -- NULL while it is connected
) STRICT;

CREATE INDEX client_disconnected ON client (id) WHERE disconnected_at IS NOT NULL;

-- The cached connections: one row for each descriptor that the daemon holds. Rows are stored by
-- endpoint, the oldest first, so that a find reads one row and needs no other index.
CREATE TABLE connection (
    id INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    properties TEXT NOT NULL,
    saved_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    client_id INTEGER NOT NULL,   -- who saved it
    PRIMARY KEY (endpoint, id)
) STRICT, WITHOUT ROWID;

-- The bindings: the endpoints that serve each destination, in the order of their first save.
CREATE TABLE binding (
    id INTEGER NOT NULL,
    destination TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    properties TEXT NOT NULL,
    saved_at REAL NOT NULL,       -- first saved; saving it again moves expires_at alone
    expires_at REAL NOT NULL,
    client_id INTEGER NOT NULL,   -- who saved it first
    PRIMARY KEY (destination, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX binding_identity ON binding (destination, endpoint, properties);
CREATE INDEX binding_expiry ON binding (expires_at);

-- The counters: totals since the database was created. They never decrease.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
