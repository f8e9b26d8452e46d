"""Random reads of 4 KiB through Python libraries: vblk, dissect.hypervisor, libvhdi.

Owns: the offsets, which all sides read in the same order, one at a time, from a
cached file. Neither opening nor a first pass is timed; that pass is what the
comparison of the bytes is made of. What the timed pass reads is not kept: memory
for it would cost more than reading it.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pyvhdi
from dissect.hypervisor.disk.vhdx import VHDX

import vblk
from bench.images import data_runs, make_raw, make_vhdx, warm
from bench.measure import Result, WrongResult, compare
from bench.settings import Settings
from vblk.units import KIB

LENGTH = 4 * KIB
TURNS = 3
"""Turns a round: short ones, so that a disturbance spoils few of them."""
ReadAll = Callable[[Path, list[int]], tuple[float, str]]
"""Reads at all offsets twice; returns the seconds of the second pass and the digest of the first."""


def choose_offsets(settings: Settings) -> list[int]:
    """Return offsets of pages that hold data, in no order, the same in every run."""
    pages = [
        page
        for start, length in data_runs(settings.data_bytes)
        for page in range(start, start + length, LENGTH)
    ]
    return random.Random(2).choices(pages, k=settings.reads)


def _timed(read: Callable[[int], bytes], offsets: list[int]) -> tuple[float, str]:
    digest = hashlib.sha256()
    for offset in offsets:
        digest.update(read(offset))
    start = time.perf_counter()
    for offset in offsets:
        read(offset)
    return time.perf_counter() - start, digest.hexdigest()


def by_vblk(image: Path, offsets: list[int]) -> tuple[float, str]:
    """Read through the asynchronous API, each read awaited before the next."""

    async def read_all() -> tuple[float, str]:
        digest = hashlib.sha256()
        async with vblk.open(image) as disk:
            for offset in offsets:
                digest.update(await disk.read(offset, LENGTH))
            start = time.perf_counter()
            for offset in offsets:
                await disk.read(offset, LENGTH)
            return time.perf_counter() - start, digest.hexdigest()

    return asyncio.run(read_all())


def by_dissect(image: Path, offsets: list[int]) -> tuple[float, str]:
    """Read through dissect.hypervisor's stream."""
    with image.open("rb") as file:
        disk = cast("Any", VHDX)(file)

        def read(offset: int) -> bytes:
            disk.seek(offset)
            return cast("bytes", disk.read(LENGTH))

        return _timed(read, offsets)


def by_libvhdi(image: Path, offsets: list[int]) -> tuple[float, str]:
    """Read through libvhdi's Python module."""
    disk = cast("Any", pyvhdi).file()
    disk.open(str(image))
    try:
        return _timed(lambda offset: disk.read_buffer_at_offset(LENGTH, offset), offsets)
    finally:
        disk.close()


def reading(settings: Settings) -> Iterator[Result]:
    """Let the libraries read the same pages in turn."""
    raw = make_raw(settings.folder / "source.raw", settings.data_bytes)
    image = make_vhdx(raw, settings.folder / "source.vhdx")
    raw.unlink()
    warm(image)
    offsets = choose_offsets(settings)
    sides: dict[str, ReadAll] = {"vblk": by_vblk, "dissect": by_dissect, "libvhdi": by_libvhdi}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    digests: set[str] = set()
    for _ in range(TURNS * settings.rounds):
        for name, side in sides.items():
            elapsed, digest = side(image, offsets)
            seconds[name].append(elapsed)
            digests.add(digest)
    if len(digests) != 1:
        raise WrongResult("the libraries read different bytes")
    image.unlink()
    yield compare("4 KiB reads: dissect / vblk", seconds, "dissect", "vblk", 5)
    yield compare("4 KiB reads: libvhdi / vblk", seconds, "libvhdi", "vblk", 2)
