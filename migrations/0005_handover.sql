-- The view handover is faster and makes fewer guesses; the view client_activity counts purge_id.

DROP VIEW handover;
DROP VIEW client_activity;

-- The hand-overs: one row for each connection that was found, with the client that saved it and the
-- client that found it, in the order of the finds.
CREATE VIEW handover AS
WITH doubtful AS MATERIALIZED (
    -- Times of which the trail does not tell which request followed which: those that the clock
    -- showed twice, because it was set back, and the begin of a trail that was trimmed, because
    -- events of one commit (every 0.05 s) are not written in the order of time.
    SELECT at AS since, at - offset AS until FROM clock_step WHERE offset < 0
    UNION ALL
    SELECT 0, (SELECT min(at) FROM event) + 0.2 FROM counter
    WHERE name = 'events_trimmed' AND value > 0
),
request AS MATERIALIZED (
    -- Every request but a find_endp in vain, in the order of clients and times, and the one before
    -- it; `directly` if there was none in vain between the two, `second` if there was none before
    -- that. A client makes no two requests at one time: each takes longer than the grain of the
    -- clock.
    SELECT
        *,
        lag(id) OVER by_client AS before,
        place - lag(place) OVER by_client = 1 AS directly,
        lag(client_id, 2) OVER by_client IS NOT client_id AS second
    FROM (
        SELECT
            id,
            at,
            kind,
            status,
            connection_id,
            client_id,
            row_number() OVER (ORDER BY client_id, at, id) AS place
        FROM event
        WHERE status IS NOT NULL
    )
    WHERE kind <> 'find_endp' OR status <> 2
    WINDOW by_client AS (ORDER BY place)
),
pair AS (
    -- Two requests of a client, one directly after the other, that save a connection of an
    -- endpoint and bind a destination to it, in either order; or bind two destinations to it, so
    -- that nothing tells for which of them a connection beside it was saved. Pairs that overlap
    -- are of one run. Before the first request of a client that is known there may have been others
    -- since it connected.
    SELECT
        later.place,
        later.at,
        iif(second, coalesce(client.connected_at, 0), earlier.at) AS since,
        iif(later.kind = 'save_endp', later.connection_id, earlier.connection_id) AS connection_id,
        iif(later.kind = 'save_dest', later.id, earlier.id) AS binds,
        later.kind = earlier.kind AS unclear,
        later.place - row_number() OVER (ORDER BY later.place) AS run
    FROM request AS later
    JOIN event AS labels ON labels.id = later.id
    JOIN event AS earlier ON earlier.id = later.before
    LEFT JOIN client ON client.id = earlier.client_id
    WHERE later.kind IN ('save_endp', 'save_dest')
        AND earlier.kind IN ('save_endp', 'save_dest')
        AND later.directly
        AND earlier.client_id = later.client_id
        AND earlier.endpoint = labels.endpoint
        AND (earlier.kind <> later.kind OR earlier.destination <> labels.destination)
),
step AS (
    -- What became of a connection, each row with one of: the save; the binding that it was saved
    -- for; a find, and the find_dest that names what for; and the end of the find that was its last.
    SELECT
        connection_id,
        NULL AS saved,
        binds,
        NULL AS sought_at,
        NULL AS sought_by,
        NULL AS seeks,
        NULL AS found
    FROM (
        SELECT
            connection_id,
            binds,
            place - min(place) OVER run AS place,
            count(*) OVER run AS pairs,
            max(unclear) OVER run AS unclear,
            min(since) OVER run AS begun,
            max(at) OVER run AS ended
        FROM pair
        WINDOW run AS (PARTITION BY run)
    )
    LEFT JOIN doubtful ON begun <= doubtful.until AND ended >= doubtful.since
    -- Of a run with an odd number of requests one is left over, the first or the last.
    WHERE pairs % 2 = 1 AND place % 2 = 0 AND NOT unclear AND doubtful.since IS NULL
    UNION ALL
    SELECT
        find.connection_id,
        NULL,
        NULL,
        find.at,
        find.client_id,
        CASE
            WHEN find.kind = 'find_dest' THEN find.id
            WHEN doubtful.since IS NULL AND earlier.kind = 'find_dest' AND earlier.status = 2
                THEN earlier.id
        END,
        NULL
    FROM request AS find
    LEFT JOIN event AS earlier
        ON earlier.id = find.before
        AND earlier.client_id = find.client_id
    LEFT JOIN doubtful ON earlier.at <= doubtful.until AND find.at >= doubtful.since
    WHERE find.kind IN ('find_endp', 'find_dest') AND find.status = 0
    UNION ALL
    SELECT
        connection_id,
        iif(kind = 'save_endp', id, NULL),
        NULL,
        NULL,
        NULL,
        NULL,
        iif(kind = 'found', id, NULL)
    FROM event
    WHERE kind = 'save_endp' AND status = 0 OR kind = 'found'
)
SELECT
    found.connection_id,
    found.endpoint,
    bound.destination AS saved_for,  -- a guess: that of the save_dest for this endpoint which the
                                  -- client made directly before the save_endp, as smtp(8) does, or
                                  -- directly after it; NULL if there is none, or nothing tells
                                  -- which of two it is, or the trail forgot
    sought.destination AS found_for,  -- of a find_dest what it asked for; of a find_endp a guess:
                                  -- that of the find_dest which the client made directly before,
                                  -- in vain, as smtp(8) does (in between it may ask for other
                                  -- endpoints, in vain: its host may have several); else NULL
    strftime('%Y-%m-%dT%H:%M:%fZ', saved.at, 'unixepoch') AS saved_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', found.at, 'unixepoch') AS found_at,
    found.age,
    saved.client_id AS saved_by,
    found.client_id AS found_by,
    saver.pid AS saved_by_pid,
    finder.pid AS found_by_pid
FROM (
    SELECT
        sum(found) AS found,
        sum(saved) AS saved,
        sum(binds) AS binds,
        max(sought_at),           -- the latest find: the next two are its columns (SQLite docs,
        sought_by,                -- "Bare columns in an aggregate query"); what was found before
        seeks                     -- was put back
    FROM step
    GROUP BY connection_id
    HAVING sum(found) IS NOT NULL
) AS connection
JOIN event AS found ON found.id = connection.found
LEFT JOIN event AS saved ON saved.id = connection.saved
LEFT JOIN event AS bound ON bound.id = connection.binds
LEFT JOIN event AS sought
    ON sought.id = connection.seeks AND found.client_id = connection.sought_by
LEFT JOIN client AS saver ON saver.id = saved.client_id
LEFT JOIN client AS finder ON finder.id = found.client_id
ORDER BY found.at, found.id;

-- The requests of each client: one row for each client in the table client or in the audit log, in
-- the order in which they connected.
CREATE VIEW client_activity AS
SELECT
    ids.id AS client_id,
    client.pid,
    client.uid,
    client.gid,
    client.program,
    strftime('%Y-%m-%dT%H:%M:%fZ', client.connected_at, 'unixepoch') AS connected_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', client.disconnected_at, 'unixepoch') AS disconnected_at,
    coalesce(e.save_endp_ok, 0) AS save_endp_ok,
    coalesce(e.save_endp_fail, 0) AS save_endp_fail,
    coalesce(e.find_endp_ok, 0) AS find_endp_ok,
    coalesce(e.find_endp_fail, 0) AS find_endp_fail,
    coalesce(e.save_dest_ok, 0) AS save_dest_ok,
    coalesce(e.save_dest_fail, 0) AS save_dest_fail,
    coalesce(e.find_dest_ok, 0) AS find_dest_ok,
    coalesce(e.find_dest_fail, 0) AS find_dest_fail,
    coalesce(e.snapshot_ok, 0) AS snapshot_ok,
    coalesce(e.snapshot_fail, 0) AS snapshot_fail,
    coalesce(e.purge_endp_ok, 0) AS purge_endp_ok,
    coalesce(e.purge_endp_fail, 0) AS purge_endp_fail,
    coalesce(e.purge_dest_ok, 0) AS purge_dest_ok,
    coalesce(e.purge_dest_fail, 0) AS purge_dest_fail,
    coalesce(e.purge_id_ok, 0) AS purge_id_ok,
    coalesce(e.purge_id_fail, 0) AS purge_id_fail,
    coalesce(e.bad, 0) AS bad,             -- malformed requests of any kind
    strftime('%Y-%m-%dT%H:%M:%fZ', e.last_at, 'unixepoch') AS last_at  -- its latest request
FROM (
    SELECT id FROM client
    UNION
    SELECT client_id FROM event WHERE status IS NOT NULL AND client_id IS NOT NULL
) AS ids
LEFT JOIN client ON client.id = ids.id
LEFT JOIN (
    SELECT
        client_id,
        sum(kind = 'save_endp' AND status = 0) AS save_endp_ok,
        sum(kind = 'save_endp' AND status = 2) AS save_endp_fail,
        sum(kind = 'find_endp' AND status = 0) AS find_endp_ok,
        sum(kind = 'find_endp' AND status = 2) AS find_endp_fail,
        sum(kind = 'save_dest' AND status = 0) AS save_dest_ok,
        sum(kind = 'save_dest' AND status = 2) AS save_dest_fail,
        sum(kind = 'find_dest' AND status = 0) AS find_dest_ok,
        sum(kind = 'find_dest' AND status = 2) AS find_dest_fail,
        sum(kind = 'snapshot' AND status = 0) AS snapshot_ok,
        sum(kind = 'snapshot' AND status = 2) AS snapshot_fail,
        sum(kind = 'purge_endp' AND status = 0) AS purge_endp_ok,
        sum(kind = 'purge_endp' AND status = 2) AS purge_endp_fail,
        sum(kind = 'purge_dest' AND status = 0) AS purge_dest_ok,
        sum(kind = 'purge_dest' AND status = 2) AS purge_dest_fail,
        sum(kind = 'purge_id' AND status = 0) AS purge_id_ok,
        sum(kind = 'purge_id' AND status = 2) AS purge_id_fail,
        sum(status = 1) AS bad,
        max(at) AS last_at
    FROM event
    WHERE status IS NOT NULL
    GROUP BY client_id
) AS e ON e.client_id = ids.id
ORDER BY ids.id;
