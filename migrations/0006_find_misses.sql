-- Why finds missed, and how many deliveries of a client found a connection.

-- The finds that missed, oldest first. A find of a client that is not served is refused, which is no
-- miss.
CREATE VIEW find_miss AS
SELECT
    id,
    strftime('%Y-%m-%dT%H:%M:%fZ', at, 'unixepoch') AS at,
    kind,
    destination,
    endpoint,
    client_id,
    reason,                       -- NULL for an event of an earlier version of scache
    CASE WHEN detail GLOB '* s ago' THEN CAST(substr(detail, length(reason) + 2) AS REAL) END
        AS since                  -- seconds since the latest connection or binding ended
FROM (
    SELECT
        *,
        CASE
            WHEN detail = 'unknown' THEN 'unknown'
            WHEN detail GLOB 'fault: *' THEN 'fault'
            WHEN detail GLOB '[a-z]* [0-9]*.[0-9] s ago' THEN substr(detail, 1, instr(detail, ' ') - 1)
        END AS reason
    FROM event
    WHERE kind IN ('find_endp', 'find_dest') AND status = 2
)
WHERE reason IS NOT NULL OR detail IS NULL
ORDER BY id;

-- Why find_dest missed, by destination; most frequent first.
CREATE VIEW destination_misses AS
SELECT destination, reason, count(*) AS misses, max(at) AS last_at
FROM find_miss
WHERE kind = 'find_dest'
GROUP BY destination, reason
ORDER BY misses DESC, destination, reason;

-- Why find_endp missed, by endpoint; most frequent first.
CREATE VIEW endpoint_misses AS
SELECT endpoint, reason, count(*) AS misses, max(at) AS last_at
FROM find_miss
WHERE kind = 'find_endp'
GROUP BY endpoint, reason
ORDER BY misses DESC, endpoint, reason;

-- The share of deliveries that found a connection, by destination; most deliveries first. A delivery
-- is a find_dest and the find_endp requests of the same client that follow it directly, up to the
-- first request that hits. Each other find_endp is a delivery of its own; these are in one row, in
-- which destination is NULL.
CREATE VIEW delivery_hit_rate AS
SELECT
    destination,
    count(*) FILTER (WHERE begins) AS deliveries,
    sum(status = 0) AS hits,
    count(*) FILTER (WHERE begins) - sum(status = 0) AS misses,
    round(1.0 * sum(status = 0) / count(*) FILTER (WHERE begins), 4) AS rate_per_delivery,
    count(*) AS finds,
    round(avg(status = 0), 4) AS rate_per_find,
    strftime('%Y-%m-%dT%H:%M:%fZ', max(at), 'unixepoch') AS last_at
FROM (
    SELECT
        kind,
        status,
        at,
        kind = 'find_dest' OR first_value(kind) OVER run <> 'find_dest' AS begins,
        CASE first_value(kind) OVER run
            WHEN 'find_dest' THEN first_value(destination) OVER run
        END AS destination
    FROM (
        SELECT
            *,  -- a number for each request that is no find_endp or follows a hit, and those after it
            sum(kind <> 'find_endp' OR before = 0) OVER (
                PARTITION BY client_id ORDER BY at, id
            ) AS run
        FROM (
            SELECT
                id,
                kind,
                status,
                at,
                client_id,
                destination,
                lag(status, 1, 0) OVER (PARTITION BY client_id ORDER BY at, id) AS before
            FROM event
            WHERE kind IN ('save_endp', 'find_endp', 'save_dest', 'find_dest') AND status <> 1
        )
    )
    WINDOW run AS (PARTITION BY client_id, run ORDER BY at, id)
)
WHERE kind IN ('find_endp', 'find_dest')
GROUP BY destination
ORDER BY deliveries DESC, destination;
