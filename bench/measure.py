"""Taking turns, timing, and what comes of it.

Owns: how a contest is run and how its times become one number. It must not know
what is being measured. Its ordering rule: all sides of a round run before the
next round begins, and each round begins with another side.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Side = Callable[[], object]
Seconds = dict[str, list[float]]


class WrongResult(Exception):
    """A side produced something else than the others: its time says nothing."""


class NotMeasured(Exception):
    """The machine lacks what a benchmark needs; the message says what."""


@dataclass(slots=True)
class Result:
    """One number with its target; `at_least` says on which side of it is good."""

    name: str
    value: float
    target: float
    at_least: bool = True
    unit: str = "x"
    spread: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def is_met(self) -> bool:
        """Tell whether the target is reached."""
        return self.value >= self.target if self.at_least else self.value <= self.target


def timed(side: Side) -> float:
    """Return the seconds that one turn takes."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def take_turns(sides: Mapping[str, Side], rounds: int, before: Side = lambda: None) -> Seconds:
    """Run every side once a round, `before` (not timed) ahead of each; return the seconds of each turn."""
    seconds: Seconds = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before()
            seconds[name].append(timed(sides[name]))
    return seconds


def medians(seconds: Seconds) -> dict[str, float]:
    """Return the median of each side's turns."""
    return {name: statistics.median(turns) for name, turns in seconds.items()}


def compare(
    name: str, seconds: Seconds, over: str, under: str, target: float, *, at_least: bool = True
) -> Result:
    """Return the median over the rounds of `over` divided by `under`."""
    ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    times = {side: value for side, value in medians(seconds).items() if side in (over, under)}
    return Result(
        name, statistics.median(ratios), target, at_least, spread=(min(ratios), max(ratios)), seconds=times
    )


def program(*command: str | Path) -> Side:
    """Return a side that runs a command and drops what it prints."""
    return lambda: run(command)


def run(command: Sequence[str | Path], output: Path | None = None) -> None:
    """Run a command, its standard output into a file or away.

    Raises:
        WrongResult: The command failed.
    """
    with Path(output or os.devnull).open("wb") as target:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=target, stderr=subprocess.PIPE, check=False
        )
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        raise WrongResult(f"{' '.join(map(str, command))} ended with {done.returncode}: {text}")


_PEAK = """\
import os, sys
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_kib(command: Sequence[str | Path], output: Path) -> int:
    """Run a command, its standard output into a file; return its peak of memory in KiB.

    A small process starts it: the kernel counts what the starting one has
    against the started one.
    """
    report = output.with_suffix(".peak")
    run([sys.executable, "-S", "-c", _PEAK, report, *command], output)
    peak = int(report.read_text())
    report.unlink()
    return peak
