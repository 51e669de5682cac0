-- The audit log, the programs of its clients, the settings of the latest run, and information about
-- the cached descriptors.

-- The name of the program when it connected (/proc/PID/comm); NULL if its process had ended before.
ALTER TABLE client ADD COLUMN program TEXT;

-- The audit log: one row for each request with its outcome, and one for each connection or binding
-- that left the cache. Only the newest rows are kept, at most as many as the setting audit_rows.
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
        -- a request: save_endp, find_endp, save_dest, find_dest, snapshot,
        -- purge_endp, purge_dest, unknown;
        -- how a connection left: found, expired, evicted, hung_up, purged, lost;
        -- how a binding left: expired, evicted, purged (connection_id is NULL);
        -- and put_back: a client was given a connection and vanished before it was sent
    status INTEGER,               -- of a request: 0 done, 1 malformed, 2 failed; else NULL
    destination TEXT,
    endpoint TEXT,
    connection_id INTEGER,
    binding_id INTEGER,
    client_id INTEGER,            -- who asked; NULL for what nobody asked for (expired, lost)
    ttl REAL,                     -- of a save: seconds granted
    age REAL,                     -- of what was taken or left: seconds since it was saved
    detail TEXT
) STRICT;

-- The settings of the latest run, as text, and the limits of its process.
CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Information of the kernel about each cached descriptor. A snapshot has these rows, and a database
-- file has none. A value that the kernel does not report is NULL.
CREATE TABLE descriptor (
    connection_id INTEGER PRIMARY KEY,
    fd INTEGER NOT NULL,          -- its number in the daemon
    kind TEXT NOT NULL,           -- tcp, udp, unix, ... for a socket by family and type; pipe, file, ...
    local TEXT,                   -- addresses: 192.0.2.1:25, [2001:db8::1]:25, a path, @abstract
    peer TEXT,
    tcp_state TEXT,               -- ESTABLISHED, CLOSE_WAIT, ...
    rtt_us INTEGER,               -- smoothed round trip time, microseconds
    unread_bytes INTEGER          -- what the peer has sent and nobody has read
) STRICT;
