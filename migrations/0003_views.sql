-- Views for administrators. Their names and columns are a public interface, like those of the
-- tables. Times are ISO 8601 in UTC with milliseconds. Ages and remaining times are seconds at the
-- time of the query, also in a copy that was written to a file earlier. Views of events begin with
-- the oldest row of the audit log. pid, uid, gid and program are NULL for a client whose row was
-- deleted.

-- The cached connections: the table connection with the client, the destinations and the peer.
CREATE VIEW live_connection AS
SELECT
    c.id,
    c.endpoint,
    c.properties,
    strftime('%Y-%m-%dT%H:%M:%fZ', c.saved_at, 'unixepoch') AS saved_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', c.expires_at, 'unixepoch') AS expires_at,
    round(c.expires_at - (julianday('now') - 2440587.5) * 86400.0, 3) AS remaining,
    round((julianday('now') - 2440587.5) * 86400.0 - c.saved_at, 3) AS age,
    c.client_id,                  -- who saved it, and its pid, uid and program
    client.pid,
    client.uid,
    client.program,
    b.destinations,               -- bound to the endpoint, ', ' between two; NULL if there is none
    d.peer,                       -- the address at the other end; NULL outside a snapshot
    d.tcp_state                   -- NULL outside a snapshot
FROM connection AS c
LEFT JOIN client ON client.id = c.client_id
LEFT JOIN descriptor AS d ON d.connection_id = c.id
LEFT JOIN (
    SELECT endpoint, group_concat(destination, ', ') AS destinations
    FROM (SELECT DISTINCT endpoint, destination FROM binding ORDER BY destination)
    GROUP BY endpoint
) AS b ON b.endpoint = c.endpoint
ORDER BY c.id;

-- The endpoints that serve each destination, in the order in which a find tries them.
CREATE VIEW live_binding AS
SELECT
    b.id,
    b.destination,
    b.endpoint,
    b.properties,
    strftime('%Y-%m-%dT%H:%M:%fZ', b.saved_at, 'unixepoch') AS saved_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', b.expires_at, 'unixepoch') AS expires_at,
    round(b.expires_at - (julianday('now') - 2440587.5) * 86400.0, 3) AS remaining,
    round((julianday('now') - 2440587.5) * 86400.0 - b.saved_at, 3) AS age,
    b.client_id,                  -- who saved it first, and its pid, uid and program
    client.pid,
    client.uid,
    client.program,
    coalesce(c.connections, 0) AS connections  -- that the endpoint has now
FROM binding AS b
LEFT JOIN client ON client.id = b.client_id
LEFT JOIN (
    SELECT endpoint, count(*) AS connections FROM connection GROUP BY endpoint
) AS c ON c.endpoint = b.endpoint
ORDER BY b.destination, b.id;

-- The audit log, oldest first: the table event with readable times, outcomes and clients.
CREATE VIEW event_log AS
SELECT
    e.id,
    strftime('%Y-%m-%dT%H:%M:%fZ', e.at, 'unixepoch') AS at,
    e.kind,
    CASE e.status WHEN 0 THEN 'ok' WHEN 1 THEN 'bad' WHEN 2 THEN 'fail' END AS outcome,
    e.destination,
    e.endpoint,
    e.connection_id,
    e.binding_id,
    e.client_id,
    client.pid,
    client.uid,
    client.gid,
    client.program,
    e.ttl,
    e.age,
    e.detail
FROM event AS e
LEFT JOIN client ON client.id = e.client_id
ORDER BY e.id;

-- The share of find_dest requests that found a connection, by destination; most requested first.
CREATE VIEW destination_hit_rate AS
SELECT
    destination,
    count(*) AS finds,            -- malformed requests are none
    sum(status = 0) AS hits,
    sum(status <> 0) AS misses,
    round(avg(status = 0), 4) AS rate,  -- hits / finds, from 0 to 1
    strftime('%Y-%m-%dT%H:%M:%fZ', max(at), 'unixepoch') AS last_at
FROM event
WHERE kind = 'find_dest' AND status <> 1
GROUP BY destination
ORDER BY finds DESC, destination;

-- The share of find_endp requests that found a connection, by endpoint. Requests find_dest are not
-- included, because one that finds nothing has no endpoint.
CREATE VIEW endpoint_hit_rate AS
SELECT
    endpoint,
    count(*) AS finds,
    sum(status = 0) AS hits,
    sum(status <> 0) AS misses,
    round(avg(status = 0), 4) AS rate,
    strftime('%Y-%m-%dT%H:%M:%fZ', max(at), 'unixepoch') AS last_at
FROM event
WHERE kind = 'find_endp' AND status <> 1
GROUP BY endpoint
ORDER BY finds DESC, endpoint;

-- Endpoints with connections that no client found. First those of which no connection was ever
-- found, then by the number of connections that left the cache without being found. If found is 0
-- and never_found is not, then clients save the connections, but do not ask for this endpoint.
CREATE VIEW saved_never_found AS
SELECT
    endpoint,
    sum(kind = 'save_endp') AS saved,
    count(DISTINCT CASE WHEN kind = 'found' THEN connection_id END) AS found,
    sum(kind IN ('expired', 'evicted', 'hung_up', 'purged', 'lost')) AS never_found,
    sum(kind = 'expired') AS expired,      -- never_found by the way out, this and the next four
    sum(kind = 'evicted') AS evicted,
    sum(kind = 'hung_up') AS hung_up,
    sum(kind = 'purged') AS purged,
    sum(kind = 'lost') AS lost,
    sum(kind = 'live') AS live,            -- still cached
    strftime(
        '%Y-%m-%dT%H:%M:%fZ', max(CASE WHEN kind IN ('save_endp', 'live') THEN at END), 'unixepoch'
    ) AS last_saved_at
FROM (
    SELECT endpoint, kind, connection_id, at FROM event
    WHERE kind = 'save_endp' AND status = 0
        OR kind IN ('found', 'expired', 'evicted', 'hung_up', 'purged', 'lost')
        AND connection_id IS NOT NULL  -- or else a binding left
    UNION ALL
    SELECT endpoint, 'live', id, saved_at FROM connection
)
GROUP BY endpoint
HAVING never_found > 0 OR found = 0
ORDER BY found > 0, never_found DESC, saved DESC, endpoint;

-- The ages of connections when they left the cache, by close reason, in seconds since the save. The
-- percentiles are ages that occurred (nearest rank).
CREATE VIEW lifetime AS
SELECT
    kind AS way_out,
    count(*) AS connections,
    round(avg(age), 3) AS mean,
    round(min(age), 3) AS min,
    round(max(CASE WHEN place = (of * 50 + 99) / 100 THEN age END), 3) AS median,
    round(max(CASE WHEN place = (of * 90 + 99) / 100 THEN age END), 3) AS p90,
    round(max(CASE WHEN place = (of * 99 + 99) / 100 THEN age END), 3) AS p99,
    round(max(age), 3) AS max
FROM (
    SELECT
        kind,
        age,
        row_number() OVER (PARTITION BY kind ORDER BY age) AS place,
        count(*) OVER (PARTITION BY kind) AS of
    FROM event
    WHERE kind IN ('found', 'expired', 'evicted', 'hung_up', 'purged', 'lost')
        AND connection_id IS NOT NULL AND age IS NOT NULL
)
GROUP BY kind
ORDER BY connections DESC, kind;

-- The hand-overs: one row for each connection that was found, with the client that saved it and
-- the client that found it, in the order of the finds. saved_for and found_for are the destinations
-- that these clients named before: smtp(8) requests save_dest and then save_endp, and find_dest,
-- which finds nothing, before find_endp. They are NULL if the client named no destination, or if
-- the audit log no longer has its request.
CREATE VIEW handover AS
WITH step AS (  -- the requests, with the destination that each is for
    SELECT
        connection_id,
        kind,
        status,
        at,
        client_id,
        CASE
            WHEN kind <> 'save_endp' THEN CASE WHEN named_by = 'find_dest' THEN named END
            WHEN named_by = 'save_dest' AND named_endpoint = endpoint THEN named
        END AS destination
    FROM (
        SELECT
            *,
            first_value(kind) OVER naming AS named_by,
            first_value(destination) OVER naming AS named,
            first_value(endpoint) OVER naming AS named_endpoint
        FROM (
            SELECT
                *,  -- a number for each request that names a destination, and those that follow it
                sum(kind IN ('save_dest', 'find_dest')) OVER (
                    PARTITION BY client_id ORDER BY at, id
                ) AS naming
            FROM event
            WHERE kind IN ('save_endp', 'find_endp', 'save_dest', 'find_dest')
        )
        WINDOW naming AS (PARTITION BY client_id, naming ORDER BY at, id)
    )
    WHERE connection_id IS NOT NULL
)
SELECT
    e.connection_id,
    e.endpoint,
    saved.destination AS saved_for,
    found.destination AS found_for,
    strftime('%Y-%m-%dT%H:%M:%fZ', saved.at, 'unixepoch') AS saved_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', e.at, 'unixepoch') AS found_at,
    e.age,
    saved.client_id AS saved_by,
    e.client_id AS found_by,
    saver.pid AS saved_by_pid,
    finder.pid AS found_by_pid
FROM event AS e
LEFT JOIN step AS saved ON saved.connection_id = e.connection_id AND saved.kind = 'save_endp'
LEFT JOIN step AS found  -- not that of a client that vanished, and whose connection was put back
    ON found.connection_id = e.connection_id
    AND found.client_id = e.client_id
    AND found.kind IN ('find_endp', 'find_dest')
LEFT JOIN client AS saver ON saver.id = saved.client_id
LEFT JOIN client AS finder ON finder.id = e.client_id
WHERE e.kind = 'found'
ORDER BY e.at, e.id;

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
        sum(status = 1) AS bad,
        max(at) AS last_at
    FROM event
    WHERE status IS NOT NULL
    GROUP BY client_id
) AS e ON e.client_id = ids.id
ORDER BY ids.id;
