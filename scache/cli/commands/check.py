"""``scache check``: whether all that is in the cache fits together."""

from __future__ import annotations

import click

from scache.cli.render.formats import Format, format_option, write
from scache.cli.target import Target, target_options
from scache.errors import Findings

EPILOG = """It ends with 0 if all is well, and with 6 if it has found something.

\b
Examples:
  scache check
  scache check --database /var/lib/postfix/scache.db
  scache check --format jsonl | jq 'select(.result == "wrong")'
"""


@click.command(epilog=EPILOG)
@target_options
@format_option
def check(*, target: Target, layout: Format) -> None:
    """Verify a live daemon or a database file.

    The file is sound, its tables are ours, every connection has a descriptor,
    whatever was saved is there or has left once, the counters agree with the
    events, and no id names two things. What an image cannot tell is skipped.
    """
    from scache.inspection.checks import check as look_at

    with target.image(sound=False) as image:
        report = look_at(image, live=target.database is None)
        write(report.result, layout)
    if report.broken:
        checks = "check" if report.broken == 1 else "checks"
        raise Findings(f"{report.broken} {checks} found something wrong in the {target}")
