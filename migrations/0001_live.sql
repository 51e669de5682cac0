-- What is cached, for whom, since when and until when. Table and column names
-- are a public interface. Times are seconds since the epoch. Labels and
-- properties are TEXT that may hold any bytes but NUL.

-- One row for every run of the daemon on this database.
CREATE TABLE instance (
    id INTEGER PRIMARY KEY,
    started_at REAL NOT NULL,
    stopped_at REAL,              -- NULL while it runs, and for ever if it crashed
    version TEXT NOT NULL,
    pid INTEGER NOT NULL,
    last_id INTEGER NOT NULL      -- no connection, binding or client of this run has a higher id
) STRICT;

-- One row for every process that connected; the oldest of the disconnected go in time.
CREATE TABLE client (
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    connected_at REAL NOT NULL,
    disconnected_at REAL          -- NULL while it is connected
) STRICT;

CREATE INDEX client_disconnected ON client (id) WHERE disconnected_at IS NOT NULL;

-- One row for every descriptor that the daemon holds. Clustered by endpoint, oldest first:
-- a find reads one row, and the table needs no second tree for it.
CREATE TABLE connection (
    id INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    properties TEXT NOT NULL,
    saved_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    client_id INTEGER NOT NULL,   -- who saved it
    PRIMARY KEY (endpoint, id)
) STRICT, WITHOUT ROWID;

-- Which endpoints serve a destination, in the order in which they were first saved.
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

-- Monotonic totals since the database was made.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
