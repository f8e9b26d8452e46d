"""Looking at images: start-up, compare, map, and the memory that the largest disk takes.

Owns: contests whose work is small beside a program's start; where that matters
the start is measured in the same round and taken off.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.images import data_runs, make_huge, make_raw, make_small, make_vhdx, warm
from bench.measure import (
    Result,
    Seconds,
    WrongResult,
    compare,
    medians,
    peak_kib,
    program,
    run,
    take_turns,
    timed,
)
from bench.settings import VBLK, Settings
from vblk.units import KIB, MIB, TIB

LEAST_SECONDS = 0.005
"""What is left of a time, its start taken off, counts as this at least: a start varies by more."""


def less_start(name: str, seconds: Seconds) -> Result:
    """Return qemu-img's time divided by vblk's, the time of their starts taken off in each round."""
    ratios = [
        max(theirs - their_start, LEAST_SECONDS) / max(ours - our_start, LEAST_SECONDS)
        for theirs, their_start, ours, our_start in zip(
            seconds["qemu-img"],
            seconds["qemu-img start"],
            seconds["vblk"],
            seconds["vblk start"],
            strict=True,
        )
    ]
    spread = (min(ratios), max(ratios))
    return Result(name, statistics.median(ratios), 1, spread=spread, seconds=medians(seconds))


def comparing(settings: Settings) -> Iterator[Result]:
    """Compare a VHDX with the raw disk it was made of."""
    small = make_raw(settings.folder / "small.raw", MIB)
    raw = make_raw(settings.folder / "source.raw", settings.data_bytes)
    image = make_vhdx(raw, settings.folder / "source.vhdx")
    warm(raw)
    warm(image)
    work: list[str | Path] = ["compare", "-f", "vhdx", "-F", "raw", image, raw]
    start: list[str | Path] = ["compare", "-f", "raw", "-F", "raw", small, small]
    seconds = take_turns(
        {
            "vblk": program(VBLK, *work),
            "qemu-img": program("qemu-img", *work),
            "vblk start": program(VBLK, *start),
            "qemu-img start": program("qemu-img", *start),
        },
        settings.rounds,
    )
    yield less_start("compare: qemu-img / vblk, less start", seconds)
    for path in (small, raw, image):
        path.unlink()


def mapping(settings: Settings) -> Iterator[Result]:
    """Map a VHDX; qemu-img 7.2 calls all of it one run of data, vblk tells where the data is."""
    raw = make_raw(settings.folder / "source.raw", settings.data_bytes)
    image = make_vhdx(raw, settings.folder / "source.vhdx")
    small = make_small(settings.folder / "small.vhdx")
    output = settings.folder / "map.json"
    run([VBLK, "map", "-f", "vhdx", "--output", "json", image], output)
    found = [(each["start"], each["length"]) for each in json.loads(output.read_bytes()) if each["data"]]
    check_covers(found, list(data_runs(settings.data_bytes)))
    arguments = ("map", "-f", "vhdx", "--output", "json")
    seconds = take_turns(
        {
            "vblk": program(VBLK, *arguments, image),
            "qemu-img": program("qemu-img", *arguments, image),
            "vblk start": program(VBLK, *arguments, small),
            "qemu-img start": program("qemu-img", *arguments, small),
        },
        3 * settings.rounds,
    )
    yield less_start("map: qemu-img / vblk, less start", seconds)
    for path in (raw, image, small, output):
        path.unlink()


def check_covers(found: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    """Check that every expected run of data lies within one that was found.

    Raises:
        WrongResult: One does not.
    """
    for start, length in expected:
        if not any(at <= start and start + length <= at + size for at, size in found):
            raise WrongResult(f"the map has no data at {start}, {length} bytes long")


def memory(settings: Settings) -> Iterator[Result]:
    """Look at a disk of 64 TiB with blocks of 1 MiB, whose table alone is half a GiB."""
    image = make_huge(settings.folder / "huge.vhdx")
    output = settings.folder / "map.json"
    for verb in ("info", "map"):
        command: list[str | Path] = [VBLK, verb, "-f", "vhdx", "--output", "json", image]
        peak = peak_kib(command, output) * KIB / MIB
        seconds = {"vblk": timed(program(*command))}
        name = f"{verb} of 64 TiB: peak memory"
        yield Result(name, peak, 200, at_least=False, unit="MiB", seconds=seconds)
    entries = json.loads(output.read_bytes())
    check_covers([(each["start"], each["length"]) for each in entries if each["data"]], [(0, 4 * KIB)])
    if sum(each["length"] for each in entries) != 64 * TIB:
        raise WrongResult("the map of the 64 TiB disk does not cover it")
    image.unlink()
    output.unlink()


def starting(settings: Settings) -> Iterator[Result]:
    """Show a VHDX, beside an interpreter that only imports asyncio."""
    image = make_small(settings.folder / "small.vhdx")
    seconds = take_turns(
        {
            "vblk info": program(VBLK, "info", image),
            "import asyncio": program(sys.executable, "-c", "import asyncio"),
        },
        3 * settings.rounds,
    )
    name = "start: vblk info / import asyncio"
    yield compare(name, seconds, "vblk info", "import asyncio", 2.5, at_least=False)
    image.unlink()
