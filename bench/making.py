"""Converting a raw disk into a VHDX, beside qemu-img and beside the kernel alone.

Owns: what is converted, and what counts as right: QEMU finds the same disk in what
vblk and it have made. The kernel's loop copies the same data to the places where a
VHDX has its blocks, and makes no tables.
"""

from collections.abc import Iterator
from pathlib import Path

from bench.convert import LOOP, PARALLEL, SIDES, copy_extents, race, results
from bench.images import data_runs, make_raw, mounted, warm
from bench.measure import Result, Side, compare, program, run
from bench.settings import VBLK, Settings
from vblk.units import GIB, MIB

HEADER = 4 * MIB


def contest(
    folder: Path, data_bytes: int, rounds: int, names: tuple[str, ...], *, size: int = 0
) -> dict[str, list[float]]:
    """Convert one raw disk by each of the sides in `names`; return their seconds.

    The disk has `size` bytes, or as many as its data needs.

    Raises:
        WrongResult: A side made another disk.
    """
    raw = make_raw(folder / "source.raw", data_bytes, size=size)
    targets = {name: folder / f"{number}.vhdx" for number, name in enumerate(SIDES)}
    extents: list[tuple[int, int, int]] = []
    end = HEADER
    for offset, length in data_runs(data_bytes):
        extents.append((end, offset, length))
        end += length
    convert = ["convert", "-f", "raw", "-O", "vhdx"]
    known: dict[str, Side] = {
        "vblk": program(VBLK, *convert, raw, targets["vblk"]),
        PARALLEL: program("qemu-img", *convert, "-W", "-m", "16", raw, targets[PARALLEL]),
        "qemu-img": program("qemu-img", *convert, raw, targets["qemu-img"]),
        LOOP: lambda: copy_extents(raw, targets[LOOP], end, extents),
    }

    def check(name: str) -> None:
        if name != LOOP:
            run(["qemu-img", "compare", "-f", "raw", "-F", "vhdx", raw, targets[name]])

    warm(raw)
    seconds = race({name: known[name] for name in names}, targets, rounds, check, data_bytes)
    raw.unlink()
    return seconds


def sparse(settings: Settings) -> Iterator[Result]:
    """Convert a disk of the size that Hyper-V gives new ones, most of it never written to."""
    seconds = contest(settings.folder, settings.data_bytes, settings.rounds, SIDES, size=settings.disk_bytes)
    yield from results("convert to vhdx", seconds)


def dense(settings: Settings) -> Iterator[Result]:
    """Convert a disk that is full of data."""
    yield from results(
        "convert to vhdx, full", contest(settings.folder, settings.data_bytes, settings.rounds, SIDES)
    )


def with_reflink(settings: Settings, kind: str) -> Iterator[Result]:
    """Convert on a file system that shares blocks between files."""
    with mounted(settings.folder, kind, GIB + 5 * settings.shared_bytes) as place:
        seconds = contest(place, settings.shared_bytes, settings.rounds, ("vblk", PARALLEL))
    yield compare(f"convert to vhdx on {kind}: qemu-img -W -m 16 / vblk", seconds, PARALLEL, "vblk", 20)
