"""The audit log: one method for each fact, which counts it and records it as an event."""

from __future__ import annotations

from scache.model import AuditEvent, Connection, Delivery, Status
from scache.store.ages import ConnectionAges
from scache.store.batch import Batch, text
from scache.store.class_counts import ClassCounts
from scache.store.endings import Endings, Miss
from scache.store.event_writer import LONG_LABEL, ROWS_AT_ONCE, EventWriter
from scache.store.live_rows import Binding, Gone
from scache.vocabulary import (
    BINDING_COUNTERS,
    CLIENTS_CONNECTED,
    CLIENTS_NOT_ALLOWED,
    CLOSES_STUCK,
    CONNECTION_COUNTERS,
    CONNECTIONS_NOT_SENT,
    CONNECTIONS_NOT_WATCHED,
    FINDS_CONTINUED,
    LIMIT_COUNTERS,
    MISS_COUNTERS,
    REQUEST_COUNTERS,
    Limit,
)

_OUTCOMES = {
    (kind, Status[outcome.upper()]): name for (kind, outcome), name in REQUEST_COUNTERS.items()
}
_SAVE_ENDP_OK = _OUTCOMES["save_endp", Status.OK]
_FIND_ENDP_OK = _OUTCOMES["find_endp", Status.OK]
_SAVE_DEST_OK = _OUTCOMES["save_dest", Status.OK]
_FOUND = CONNECTION_COUNTERS["found"]
_FINDS = ("find_endp", "find_dest")


class AuditLog:
    """The tables ``event`` and ``counter``: what has happened, and how often.

    Some facts are only counted or remembered. Counters are exact; `events`, which writes the
    events, may trim, drop or not record them.

    Times are given as by `Clock.now`, and recorded as stamps. A stamp of an event does not change
    when the wall clock is set. A fact without a time happens now.
    """

    def __init__(self, batch: Batch, limit: int) -> None:
        """Keep the newest ``limit`` events; 0 records none."""
        self._batch = batch
        self._clock = batch.clock
        self._counts = batch.counts
        self._recording = limit > 0
        self.endings = Endings()
        """The latest ending of each label. Finds that miss get their reason from it."""
        self.connection_ages = ConnectionAges()
        self.classes = ClassCounts()
        self._found = self.endings.found
        self._found_at_age = self.connection_ages.of["found"].add
        self._asking: set[int] = set()
        """Clients whose latest requests are a ``find_dest`` that missed and any number of
        ``find_endp`` that missed. Another ``find_endp`` continues the same delivery."""
        self.events = EventWriter(batch, limit)
        self._saves = self.events.saves.rows
        self._bindings = self.events.bindings.rows
        self._finds = self.events.finds.rows

    # Requests. The frequent ones have forms of their own in the writer.

    def connection_saved(self, row: Connection, ttl: float) -> None:
        """Record a ``save_endp`` that succeeded, with the granted time to live."""
        self._counts[_SAVE_ENDP_OK] += 1
        row_id, endpoint, _, saved_at, _, client_id = row
        if self.classes.active:
            self.classes.count("save_endp", 0, endpoint)
        self._asking.discard(client_id)
        event = (saved_at + self._clock.offset, text(endpoint), row_id, client_id, ttl)
        if (followed := self.events.followed) is not None:
            followed.append((self.events.saves, event))
        if not self._recording:
            return
        if len(endpoint) > LONG_LABEL:
            self.events.long_pending += len(endpoint)
        self._saves.append(event)
        if len(self._saves) >= ROWS_AT_ONCE:
            self.events.write_saves()

    def binding_saved(self, row: Binding, binding_id: int, ttl: float) -> None:
        """Record a ``save_dest`` that succeeded, with the granted time to live.

        ``binding_id`` is the id of the stored row, which may be that of an earlier save.
        """
        self._counts[_SAVE_DEST_OK] += 1
        _, destination, endpoint, _, saved_at, _, client_id = row
        if self.classes.active:
            self.classes.count("save_dest", 0, destination)
        self._asking.discard(client_id)
        labels = (text(destination), text(endpoint))
        event = (saved_at + self._clock.offset, *labels, binding_id, client_id, ttl)
        if (followed := self.events.followed) is not None:
            followed.append((self.events.bindings, event))
        if not self._recording:
            return
        if len(destination) + len(endpoint) > LONG_LABEL:
            self.events.long_pending += len(destination) + len(endpoint)
        self._bindings.append(event)
        if len(self._bindings) >= ROWS_AT_ONCE:
            self.events.write_forms()

    def connection_taken(self, kind: str, endpoint: bytes, at: float, client_id: int) -> None:
        """Account for a find that hits; it is recorded when the delivery of its connection ends."""
        self._found(endpoint, at)
        if client_id in self._asking:
            self._asking.remove(client_id)
            if kind == "find_endp":
                self._counts[FINDS_CONTINUED] += 1

    def connection_delivered(self, delivery: Delivery, at: float) -> None:
        """Record a find that hit, and that the connection was handed over to the client."""
        if not self._finds:
            # Ask for a commit here: an earlier batch may have deleted the row already.
            self._batch.on_pending()
        counts = self._counts
        counts[_FOUND] += 1
        row, _, client_id, found_at, destination, _, _ = delivery
        row_id, endpoint, _, saved_at, _, _ = row
        self._found_at_age(at - saved_at)
        if destination is not None:
            self.find_hit(delivery)
            self.events.add(
                AuditEvent(
                    at,
                    "found",
                    endpoint=endpoint,
                    connection_id=row_id,
                    client_id=client_id,
                    age=at - saved_at,
                )
            )
            return
        counts[_FIND_ENDP_OK] += 1
        if self.classes.active:
            self.classes.count("find_endp", 0, endpoint)
        offset = self._clock.offset
        stamps = found_at + offset, at + offset, saved_at + offset
        event = (text(endpoint), row_id, client_id, *stamps)
        if (followed := self.events.followed) is not None:
            followed.append((self.events.finds, event))
        if not self._recording:
            return
        if len(endpoint) > LONG_LABEL:
            self.events.long_pending += 2 * len(endpoint)
        self._finds.append(event)
        if len(self._finds) >= ROWS_AT_ONCE:
            self.events.write_forms()

    def find_hit(self, delivery: Delivery) -> None:
        """Record a find that hit; what has become of its connection is a fact of its own."""
        row, destination = delivery.connection, delivery.destination
        self._request(
            AuditEvent(
                delivery.found_at,
                "find_endp" if destination is None else "find_dest",
                Status.OK,
                destination=destination,
                endpoint=row.endpoint,
                connection_id=row.id,
                binding_id=delivery.binding_id,
                client_id=delivery.client_id,
                age=delivery.found_at - row.saved_at,
            )
        )

    def find_missed(
        self,
        kind: str,
        at: float,
        client_id: int,
        miss: Miss,
        *,
        endpoint: bytes | None = None,
        destination: bytes | None = None,
    ) -> None:
        """Record a find that found nothing, or whose connection cannot be sent, and why."""
        self._counts[MISS_COUNTERS[miss.reason]] += 1
        if self.classes.active:
            self.classes.count_miss(kind, miss.reason, destination or endpoint or b"")
        self._follow(kind, client_id)
        self._request(
            AuditEvent(
                at,
                kind,
                Status.FAIL,
                destination=destination,
                endpoint=endpoint,
                client_id=client_id,
                detail=miss.detail,
            )
        )

    def delivery_denied(self, delivery: Delivery, at: float, why: str) -> None:
        """Record a connection that cannot be sent to its finder, which gets a miss instead."""
        self.connections_not_sent(1)
        miss, client_id = Miss.because("fault", why), delivery.client_id
        if delivery.destination is None:
            endpoint = delivery.connection.endpoint
            self.find_missed("find_endp", at, client_id, miss, endpoint=endpoint)
        else:
            self.find_missed("find_dest", at, client_id, miss, destination=delivery.destination)

    def connection_refused(self, endpoint: bytes, client_id: int, why: str) -> None:
        """Record a ``save_endp`` that failed."""
        now, kind = self._clock.now(), "save_endp"
        self.endings.save_refused(endpoint, now)
        self._asking.discard(client_id)
        self._request(
            AuditEvent(now, kind, Status.FAIL, endpoint=endpoint, client_id=client_id, detail=why)
        )

    def connection_limited(self, endpoint: bytes, client_id: int, limit: Limit) -> None:
        """Record a ``save_endp`` that a limit refused."""
        self.limit_reached(limit)
        self.connection_refused(endpoint, client_id, _limit_text(limit))

    def binding_refused(self, row: Binding, ttl: float, why: str) -> None:
        """Record a ``save_dest`` that failed, with the time to live that would be granted."""
        self.endings.binding_refused(row.destination, row.saved_at)
        self._asking.discard(row.client_id)
        self._request(
            AuditEvent(
                row.saved_at,
                "save_dest",
                Status.FAIL,
                destination=row.destination,
                endpoint=row.endpoint,
                client_id=row.client_id,
                ttl=ttl,
                detail=why,
            )
        )

    def binding_limited(self, row: Binding, ttl: float, limit: Limit) -> None:
        """Record a ``save_dest`` that a limit refused."""
        self.limit_reached(limit)
        self.binding_refused(row, ttl, _limit_text(limit))

    def request_refused(self, kind: str, client_id: int, why: str) -> None:
        """Record a request of a client that is not admitted or not permitted to send it."""
        now = self._clock.now()
        if kind in _FINDS:
            self._follow(kind, client_id)
        elif kind.startswith("save_"):
            self._asking.discard(client_id)
        self._request(AuditEvent(now, kind, Status.FAIL, client_id=client_id, detail=why))

    def request_malformed(self, kind: str, client_id: int, detail: str | None = None) -> None:
        """Record a malformed request; ``kind`` is the name of the request, or ``unknown``."""
        event = AuditEvent(self._clock.now(), kind, Status.BAD, client_id=client_id, detail=detail)
        self._request(event)

    def purged(
        self,
        kind: str,
        client_id: int,
        status: Status = Status.OK,
        *,
        endpoint: bytes | None = None,
        destination: bytes | None = None,
        connection_id: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Record a purge request; what it has closed are facts of their own."""
        self._request(
            AuditEvent(
                self._clock.now(),
                kind,
                status,
                destination=destination,
                endpoint=endpoint,
                connection_id=connection_id,
                client_id=client_id,
                detail=detail,
            )
        )

    def snapshot_taken(self, client_id: int, detail: str | None = None) -> None:
        """Record a snapshot request; ``detail`` is the reason if it failed."""
        status = Status.OK if detail is None else Status.FAIL
        now = self._clock.now()
        self._request(AuditEvent(now, "snapshot", status, client_id=client_id, detail=detail))

    # What happens to connections and bindings.

    def connection_removed(
        self,
        reason: str,
        at: float,
        *,
        connection_id: int,
        endpoint: bytes,
        saved_at: float,
        expires_at: float,
        client_id: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Record the removal of a connection; ``client_id`` is the client that requested it."""
        # An expired connection is removed a little later, but could not be found any more.
        self.endings.of_connection(endpoint, reason, expires_at if reason == "expired" else at)
        self.connection_ages.of[reason].add(at - saved_at)
        self._counts[CONNECTION_COUNTERS[reason]] += 1
        self.events.add(
            AuditEvent(
                at,
                reason,
                endpoint=endpoint,
                connection_id=connection_id,
                client_id=client_id,
                age=at - saved_at,
                detail=detail,
            )
        )

    def connection_put_back(self, delivery: Delivery, at: float) -> None:
        """Record a found connection that was not sent and is parked again."""
        row = delivery.connection
        self.events.add(
            AuditEvent(
                at,
                "put_back",
                endpoint=row.endpoint,
                connection_id=row.id,
                client_id=delivery.client_id,
                age=at - row.saved_at,
            )
        )

    def connections_not_sent(self, number: int) -> None:
        """Count found connections whose descriptors cannot be sent."""
        self._counts[CONNECTIONS_NOT_SENT] += number

    def connection_not_watched(self) -> None:
        """Count a connection that cannot be watched for a hang-up."""
        self._counts[CONNECTIONS_NOT_WATCHED] += 1

    def binding_removed(
        self, reason: str, at: float, gone: Gone, client_id: int | None = None
    ) -> None:
        """Record the removal of a binding; ``client_id`` is the client that requested it."""
        ended_at = gone.expires_at if reason == "expired" else at
        self.endings.of_binding(gone.destination, reason, ended_at)
        self._counts[BINDING_COUNTERS[reason]] += 1
        self.events.add(
            AuditEvent(
                at,
                reason,
                destination=gone.destination,
                endpoint=gone.endpoint,
                binding_id=gone.id,
                client_id=client_id,
                age=at - gone.saved_at,
            )
        )

    def limit_reached(self, limit: Limit) -> None:
        """Count a request or client that exceeds a limit."""
        self._counts[LIMIT_COUNTERS[limit]] += 1

    def client_connected(self) -> None:
        """Count a client."""
        self._counts[CLIENTS_CONNECTED] += 1

    def client_disconnected(self, client_id: int) -> None:
        """Forget which delivery the requests of a client belong to."""
        self._asking.discard(client_id)

    def client_not_allowed(self) -> None:
        """Count a client that access control refuses."""
        self._counts[CLIENTS_NOT_ALLOWED] += 1

    def closes_stuck(self, number: int) -> None:
        """Count descriptors whose close(2) does not return."""
        self._counts[CLOSES_STUCK] += number

    def _follow(self, kind: str, client_id: int) -> None:
        """Account for a find that failed, for the hit rate per delivery."""
        if kind == "find_dest":
            self._asking.add(client_id)
        elif client_id in self._asking:
            self._counts[FINDS_CONTINUED] += 1

    def _request(self, event: AuditEvent) -> None:
        """Count and record a request with its outcome."""
        assert event.status is not None
        self._counts[_OUTCOMES[event.kind, event.status]] += 1
        if self.classes.active:
            self.classes.count_event(event)
        self.events.add(event)


def _limit_text(limit: Limit) -> str:
    return f"limit: {limit}".replace("_", " ")
