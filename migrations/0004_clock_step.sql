-- The wall clock may be set while the daemon runs, by NTP or by an administrator. The daemon then
-- moves the times of live rows in one transaction, so that no lifetime changes: saved_at and
-- expires_at of connections and bindings, connected_at of connected clients, started_at and
-- booted_at of the run. Times of past events stay as they were written.

-- The clock steps: one row for each time that the clock was set by more than a second. The newest
-- 1,000 are kept.
CREATE TABLE clock_step (
    at REAL NOT NULL,             -- when the daemon noticed, by the clock as it was set then
    offset REAL NOT NULL          -- by how many seconds: > 0 forward, < 0 backward
) STRICT;

-- The boot in which the run began: the boot id of the kernel, and the offset of CLOCK_BOOTTIME in
-- the time namespace. NULL for runs of earlier versions.
ALTER TABLE instance ADD COLUMN boot TEXT;

-- The wall time of that boot (CLOCK_REALTIME minus CLOCK_BOOTTIME) on which the latest times of the
-- run are based. NULL for runs of earlier versions.
ALTER TABLE instance ADD COLUMN booted_at REAL;
