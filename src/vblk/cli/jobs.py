"""`vblk jobs`: the jobs of a running daemon.

Owns: what is shown of a job, and how: a table that lives on a terminal, lines for
pipes, JSON for programs. Of a daemon that tells no more, QEMU's, it shows less.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from vblk.cli.command import Verb, flag
from vblk.cli.connection import Connection, Refused
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.options import format_size

PERIOD: Final = 0.5
"""Seconds after which the table is shown anew."""
HEADS: Final = ("ID", "TYPE", "STATUS", "DONE", "LENGTH", "RATE", "LEFT", "DIRTY", "REASON")

Job = dict[str, Any]


@dataclass(slots=True)
class Arguments:
    """The words of one call."""

    operands: tuple[str, ...]
    json: bool


def run(arguments: Arguments, console: Console) -> int:
    """Ask the daemon, and show what it says."""
    if len(arguments.operands) != 1:
        raise Failure("Expecting the path of a QMP socket", hint=True)
    connection = Connection(arguments.operands[0], lambda event: None)
    try:
        if arguments.json:
            console.print(json.dumps(jobs_of(connection), indent=4))
        elif console.watched:
            _show_live(connection, console)
        else:
            console.print(*_lines(jobs_of(connection)))
    finally:
        connection.close()
    return SUCCESS


def jobs_of(connection: Connection) -> list[Job]:
    """Return what a daemon tells of its jobs, with the members of `query-job-progress`.

    Raises:
        Failure: It refuses, or has gone.
    """
    try:
        jobs: list[Job] = connection.call("query-job-progress")
    except Refused as refused:
        if refused.kind != "CommandNotFound":
            raise
        jobs = [
            {
                "id": job["id"],
                "type": job["type"],
                "status": job["status"],
                "offset": job["current-progress"],
                "length": job["total-progress"],
            }
            for job in connection.call("query-jobs")
        ]
    return jobs


def _cells(job: Job) -> tuple[str, ...]:
    done = f" ({job['offset'] * 100 / job['length']:.1f} %)" if job["length"] else ""
    rate, left, dirty = job.get("rate"), job.get("seconds-left"), job.get("dirty-bytes")
    return (
        job["id"],
        job["type"],
        job["status"],
        format_size(job["offset"]) + done,
        format_size(job["length"]),
        "-" if rate is None else f"{format_size(rate)}/s",
        "-" if left is None else f"{left:.0f} s",
        "-" if dirty is None else format_size(dirty),
        job.get("reason", "-"),
    )


def _lines(jobs: Sequence[Job]) -> list[str]:
    if not jobs:
        return ["No active jobs"]
    rows = [HEADS, *(_cells(job) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _show_live(connection: Connection, console: Console) -> None:
    """Show a table until there are no jobs any more."""
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Table

    def table(jobs: Sequence[Job]) -> Table:
        shown = Table(box=None)
        for head in HEADS:
            shown.add_column(head.lower(), style="bold cyan" if head == "ID" else None)
        for job in jobs:
            shown.add_row(*map(escape, _cells(job)))
        return shown

    jobs = jobs_of(connection)
    with Live(table(jobs), console=console.terminal(), auto_refresh=False) as live:
        while jobs:
            time.sleep(PERIOD)
            jobs = jobs_of(connection)
            if jobs:
                live.update(table(jobs), refresh=True)
    console.print("No active jobs")


VERB = Verb(
    "jobs",
    run,
    Arguments,
    [flag("--json", help="Print one JSON array, and end.")],
    operands="SOCKET",
    help="Show the jobs of a running daemon by its QMP socket: how far each is, how fast, and what keeps it. "
    "On a terminal the table lives until no job is left.",
)
