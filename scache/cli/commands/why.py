"""``scache why``: tell the life of a label, and why finds missed it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from scache.cli.naming import PATTERNS, Named, give_hints, say
from scache.cli.option_types import as_text, bytes_of
from scache.cli.streams import echo
from scache.cli.target import Target, target_options
from scache.escape import joined

if TYPE_CHECKING:
    from scache.inspection.lives import Gone, Life, Missed

EPILOG = f"""{PATTERNS}

If no label matches, LABEL is taken for a field.

\b
Examples:
  scache why example.org
  scache why 'smtp\\n203.0.113.5\\n587\\n0\\n'
  scache why '*example.org*' --database /var/lib/postfix/scache.db

The reasons are explained by `scache help misses`.
"""

MOST = 10
"""Labels that the command tells about at most."""

_WORDS = {
    "none_left": "all had been found",
    "expired": "the time to live was over",
    "hung_up": "the peer had closed the last one",
    "purged": "an administrator had purged the last one",
    "limit": "the last one was closed for another one",
    "refused": "a save was refused before",
    "fault": "the database failed, or the descriptor could not be sent",
    "unknown": "nothing of the label was remembered since the start of the daemon",
    None: "the reason was not recorded, by an earlier version of scache",
}
"""What the misses lacked, by reason."""

_ADVICE = {
    "none_left": "clients ask for more connections than they save, which is normal at a peak; "
    "otherwise let them save more (Postfix: a longer smtp_connection_reuse_time_limit)",
    "hung_up": "the server closes idle connections: raise its idle time, or save with a shorter "
    "time to live",
    "purged": "nothing, if the purge was intended; scache events --kind purge_id tells of it",
    "limit": "raise max_connections or max_bytes, or the limit on open files: scache stats shows "
    "which is full",
    "refused": "remove the cause of the refused saves: see scache help limits",
    "fault": "see scache check, the log of the daemon and scache help faults",
    "unknown": "if this goes on, no client saves for this label: compare it with the labels that "
    'are saved (scache sql "SELECT * FROM saved_never_found")',
}
"""What to change, by reason; for ``expired`` it depends on the figures."""


@click.command(epilog=EPILOG)
@target_options
@click.argument("label", metavar="LABEL", type=as_text)
def why(*, target: Target, label: str) -> None:
    """Tell why finds missed an endpoint or a destination.

    For each label that matches: what was saved, how it went, what the misses
    lacked, and what to change. It covers the events that the audit log has. The
    output is text, also in a pipe.
    """
    from scache.inspection.lives import lives

    if not label:
        raise click.UsageError("LABEL must not be empty")
    with target.image() as image:
        found = lives(image, bytes_of(label), MOST + 1)
        if not found:
            give_hints(image, Named(None, None, [label], []), recorded=True, nothing=True)
            echo("no event and no cached connection or binding has such a label")
            return
    blocks = ("\n".join(_told(life)) for life in found[:MOST])
    echo("\n\n".join(blocks))
    if len(found) > MOST:
        say(f"more than {MOST} labels match: only these are shown")


def _told(life: Life) -> Iterator[str]:
    """Yield the lines about one label."""
    noun = "connection" if life.column == "endpoint" else "binding"
    yield f"{life.column} {joined(life.label)}"
    granted = "" if life.ttl is None else f", for {_seconds(life.ttl)} at most"
    yield f"  saved: {_number(life.saved, noun)}{granted}; cached now: {life.live}"
    for detail, number in life.refused.items():
        yield f"  refused: {_number(number, 'save')} ({detail})"
    if life.gone:
        yield f"  left: {', '.join(_left(kind, gone) for kind, gone in life.gone.items())}"
    if life.endpoints:
        yield f"  bound to: {', '.join(map(joined, life.endpoints))}"
    if not life.finds:
        yield f"  finds: none; no client has asked for this {life.column}"
        return
    share = f"{life.hits / life.finds:.0%}"
    yield f"  finds: {life.finds}, of which {life.hits} found a connection ({share})"
    for reason, missed in life.misses.items():
        times, word = _number(missed.number, "find"), reason or "no reason"
        yield f"  missed: {times}, {word}: {_WORDS[reason]}{_ago(missed)}"
    for reason, missed in life.misses.items():
        if advice := _advice(reason, missed, life):
            yield f"  to change ({reason}): {advice}"


def _left(kind: str, gone: Gone) -> str:
    age = "" if gone.mean_age is None else f" (at {_seconds(gone.mean_age)} on average)"
    return f"{gone.number} {kind}{age}"


def _advice(reason: str | None, missed: Missed, life: Life) -> str | None:
    if reason != "expired":
        return None if reason is None else _ADVICE[reason]
    longer = ""
    if missed.longest is not None:
        ttl = "" if life.ttl is None else f" ({_seconds(life.ttl + missed.longest + 0.1)} in all)"
        longer = f" by {_seconds(missed.longest + 0.1)}{ttl}"
    return (
        f"a time to live that is longer{longer} would have hit each time: raise it in the client "
        "(Postfix: smtp_connection_cache_time_limit and connection_cache_ttl_limit) and ttl_limit"
    )


def _ago(missed: Missed) -> str:
    """Return how long before the finds it had happened."""
    if missed.shortest is None or missed.longest is None:
        return ""
    if missed.shortest == missed.longest:
        return f", {_seconds(missed.longest)} before"
    return f", {missed.shortest:.1f} to {_seconds(missed.longest)} before"


def _seconds(number: float) -> str:
    return f"{number:.1f} s"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
