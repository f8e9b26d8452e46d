"""How far a long command is, shown to whoever watches.

Owns: three views of one `Progress`: QEMU's line for pipes, a bar on a terminal,
and one JSON object a line on standard error for programs. Must not know what
the job does.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from vblk.aio.clock import LoopClock
from vblk.cli.command import option
from vblk.cli.console import Console
from vblk.cli.values import WordType
from vblk.jobs.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

STEP_PERCENT: Final = 1.0
"""QEMU's line is written anew when this much was added."""

JSON_SECONDS: Final = 0.2
"""JSON lines come at most this often; the first and the last always come."""


def progress_option() -> click.Option:
    """Declare `--progress`."""
    return option(
        "--progress",
        "progress_format",
        metavar="json|line",
        type=WordType(("json", "line"), "--progress must be json or line"),
        help="How -p tells: json writes one JSON object a line to standard error; line is QEMU's.",
    )


@contextmanager
def shown_progress(
    console: Console, *, wanted: bool, form: str | None, quiet: bool, what: str
) -> Generator[Progress | None]:
    """Yield what a job should report to, or None when nobody wants to know.

    Args:
        console: Where it is shown.
        wanted: Whether `-p` was given.
        form: What `--progress` said, or None: a bar on a terminal, else QEMU's line.
        quiet: Whether `-q` was given: nothing is shown then.
        what: The word before the bar.
    """
    if quiet or not (wanted or form is not None):
        yield None
    elif form == "json":
        yield Progress(_JsonView(console), LoopClock())
    elif form is None and console.watched:
        with _bar(console, what) as view:
            yield Progress(view, LoopClock())
    else:
        yield Progress(_LineView(console), LoopClock())
        console.write("\n")


class _LineView:
    """QEMU's line: `    (12.34/100%)`, overwritten in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: float | None = None

    def __call__(self, progress: Progress) -> None:
        percent = progress.fraction * 100
        if (
            self._shown is None
            or percent >= self._shown + STEP_PERCENT
            or (progress.finished and percent == 100)
        ):
            self._shown = percent
            self._console.write(f"    ({percent:.2f}/100%)\r")


class _JsonView:
    """One object a line: bytes, rate in bytes a second, seconds left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        import json

        now = time.monotonic()
        if not (progress.finished or self._last == 0.0 or now - self._last >= JSON_SECONDS):
            return
        self._last = now
        left = progress.seconds_left
        record = {
            "offset": progress.done,
            "length": progress.total,
            "percent": round(progress.fraction * 100, 2),
            "rate": round(progress.rate),
            "eta": None if left is None else round(left, 1),
            "finished": progress.finished,
        }
        self._console.err.write(json.dumps(record) + "\n")
        self._console.err.flush()


@contextmanager
def _bar(console: Console, what: str) -> "Generator[Callable[[Progress], None]]":
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %"),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console.terminal()) as bar:
        yield _BarView(bar, bar.add_task(what, total=None))


class _BarView:
    """A bar with rate and time left."""

    def __init__(self, bar: "Bar", task: "TaskID") -> None:
        self._bar = bar
        self._task = task

    def __call__(self, progress: Progress) -> None:
        self._bar.update(self._task, completed=progress.done, total=progress.total)
