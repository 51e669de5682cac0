-- The wall clock may be set (by NTP, or by hand) while the daemon runs. Then the times of all that
-- is live move with it, in one transaction: saved_at and expires_at of connections and bindings,
-- connected_at of clients that are connected, started_at and booted_at of the run. The times of
-- what is past stay as they were written. No lifetime changes.

-- One row for every time that the clock was set by more than a second; the last 1,000.
CREATE TABLE clock_step (
    at REAL NOT NULL,             -- when the daemon noticed, by the clock as it was set then
    offset REAL NOT NULL          -- by how many seconds: > 0 forward, < 0 backward
) STRICT;

-- The boot of the machine in which the run began: the boot id of the kernel, and the offset of
-- CLOCK_BOOTTIME in the time namespace. NULL for runs of earlier versions.
ALTER TABLE instance ADD COLUMN boot TEXT;

-- The wall time of that boot (CLOCK_REALTIME minus CLOCK_BOOTTIME) by which the latest times of the
-- run were written. NULL for runs of earlier versions.
ALTER TABLE instance ADD COLUMN booted_at REAL;
