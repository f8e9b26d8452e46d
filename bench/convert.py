"""Converting a VHDX into a raw file, beside qemu-img and beside the kernel alone.

Owns: what is converted, and the loop that shows what the kernel can do. All
targets are removed, the disks synchronised and memory made ready before each turn,
outside of the time, so that no side pays for another one's dirty pages.
"""

import json
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.images import digest, make_raw, make_vhdx, mounted, warm
from bench.measure import Result, Side, WrongResult, compare, program, take_turns
from bench.settings import VBLK, Settings
from vblk.units import GIB

PARALLEL = "qemu-img -W -m 16"
LOOP = "copy_file_range"
SIDES = ("vblk", PARALLEL, "qemu-img", LOOP)
_POPULATE_WRITE = 23
"""Linux' MADV_POPULATE_WRITE, which Python 3.11 has no name for."""
Extents = list[tuple[int, int, int]]


def extents_of(image: Path) -> tuple[int, Extents]:
    """Return the disk's size and (guest offset, file offset, length) of its data, as `vblk map` tells."""
    command: list[str | Path] = [VBLK, "map", "-f", "vhdx", "--output", "json", image]
    entries = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    size = entries[-1]["start"] + entries[-1]["length"]
    return size, [(each["start"], each["offset"], each["length"]) for each in entries if each["data"]]


def copy_extents(source: Path, target: Path, size: int, extents: Extents) -> None:
    """Copy the data of an image by the kernel's own means and nothing else."""
    reading = os.open(source, os.O_RDONLY)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.ftruncate(writing, size)
        for guest_offset, file_offset, length in extents:
            done = 0
            while done < length:
                done += os.copy_file_range(
                    reading, writing, length - done, file_offset + done, guest_offset + done
                )
    finally:
        os.close(writing)
        os.close(reading)


def contest(
    folder: Path, data_bytes: int, rounds: int, names: tuple[str, ...], *, size: int = 0
) -> dict[str, list[float]]:
    """Convert one VHDX by each of the sides in `names`; return their seconds.

    The disk has `size` bytes, or as many as its data needs.

    Raises:
        WrongResult: Two sides made different disks.
    """
    raw = make_raw(folder / "source.raw", data_bytes, size=size)
    image = make_vhdx(raw, folder / "source.vhdx")
    size, extents = extents_of(image)
    convert = ["convert", "-f", "vhdx", "-O", "raw"]
    targets = {name: folder / f"{number}.raw" for number, name in enumerate(SIDES)}
    known: dict[str, Side] = {
        "vblk": program(VBLK, *convert, image, targets["vblk"]),
        PARALLEL: program("qemu-img", *convert, "-W", "-m", "16", image, targets[PARALLEL]),
        "qemu-img": program("qemu-img", *convert, image, targets["qemu-img"]),
        LOOP: lambda: copy_extents(image, targets[LOOP], size, extents),
    }

    expected = digest(raw)

    def check(name: str) -> None:
        if digest(targets[name]) != expected:
            raise WrongResult(f"{name} made another disk than the one that went in")

    warm(image)
    seconds = race({name: known[name] for name in names}, targets, rounds, check, data_bytes)
    raw.unlink()
    image.unlink()
    return seconds


def race(
    sides: dict[str, Side], targets: dict[str, Path], rounds: int, check: Callable[[str], None], memory: int
) -> dict[str, list[float]]:
    """Let each side make its target once and `check` it, then take turns; return the seconds.

    All targets are gone, durably, before each turn and at the end, and so many bytes of
    memory are there: some hosts take back what a guest has freed, and whoever came first
    afterwards would pay for it.
    """

    def clear() -> None:
        for target in targets.values():
            target.unlink(missing_ok=True)
        os.sync()
        with mmap.mmap(-1, memory) as touched:
            touched.madvise(_POPULATE_WRITE)

    for name, side in sides.items():
        side()
        check(name)
        clear()
    seconds = take_turns(sides, rounds, clear)
    clear()
    return seconds


def sparse(settings: Settings) -> Iterator[Result]:
    """Convert a disk of the size that Hyper-V gives new ones, most of it never written to."""
    seconds = contest(settings.folder, settings.data_bytes, settings.rounds, SIDES, size=settings.disk_bytes)
    yield from results("convert", seconds)


def dense(settings: Settings) -> Iterator[Result]:
    """Convert a disk that is full of data."""
    seconds = contest(settings.folder, settings.data_bytes, settings.rounds, SIDES)
    yield from results("convert, full", seconds)


def results(what: str, seconds: dict[str, list[float]]) -> Iterator[Result]:
    """Yield the ratios of a contest of all sides."""
    yield compare(f"{what}: qemu-img -W -m 16 / vblk", seconds, PARALLEL, "vblk", 1.5)
    yield compare(f"{what}: qemu-img / vblk", seconds, "qemu-img", "vblk", 2)
    yield compare(f"{what}: vblk / copy_file_range loop", seconds, "vblk", LOOP, 1.3, at_least=False)


def with_reflink(settings: Settings, kind: str) -> Iterator[Result]:
    """Convert on a file system that shares blocks between files."""
    with mounted(settings.folder, kind, GIB + 5 * settings.shared_bytes) as place:
        seconds = contest(place, settings.shared_bytes, settings.rounds, ("vblk", PARALLEL))
    yield compare(f"convert on {kind}: qemu-img -W -m 16 / vblk", seconds, PARALLEL, "vblk", 20)
