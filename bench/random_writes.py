"""Writes of 4 KiB into a VHDX at depth 1 and 64: vblk's Python API beside `qemu-img bench -w`.

Owns: the offsets. Both sides write the same bytes at the same offsets in the
same order, to identical copies of one image, through the page cache
(`writeback`), with a flush after so many writes or none. qemu-img walks through
the disk by a step, modulo its size; steps are chosen so that each write of the
allocating contest falls into a block of its own, and overwrites jump about.

What is timed is the writes and flushes alone, by each side's own clock, neither
opening nor closing. At depth 1 both wait for a flush before they go on. At depth
64 vblk's user is 64 tasks that share the offsets; whose turn it is to flush does
so while the others go on, and qemu-img does the same (`--no-drain`). Afterwards
both images must hold the same disk.

The images leave the page cache before the first turn, which is not counted, and
come back page by page as they are written: in the large pieces that reading or
copying a whole file leaves there the kernel takes many times as long for each
4 KiB, whoever writes.
"""

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import vblk
from bench.images import make_raw, make_vhdx
from bench.measure import Result, WrongResult, compare, run
from bench.settings import Settings
from vblk.units import KIB, MIB

LENGTH = 4 * KIB
BLOCK = MIB
PATTERN = 0xA5
TURNS = 3
"""Turns a round: short ones, so that a disturbance spoils few of them."""
_COMPLETED = re.compile(rb"Run completed in ([0-9.]+) seconds")


@dataclass(frozen=True, slots=True)
class Load:
    """`writes` requests, each `step` bytes behind the one before, modulo the disk's size.

    `depth` of them are under way at a time; `flush_every` so many comes a flush, 0: never.
    """

    writes: int
    step: int
    depth: int
    flush_every: int

    def offsets(self, size: int) -> Iterator[int]:
        """Yield where the writes go on a disk of `size` bytes."""
        return (number * self.step % size for number in range(self.writes))


def by_vblk(image: Path, load: Load) -> float:
    """Write through the asynchronous API; return the seconds it took."""

    async def write_all() -> float:
        data = bytes([PATTERN]) * LENGTH
        async with vblk.open(image, format="vhdx", read_only=False) as disk:
            numbered = zip(count(1), load.offsets(disk.size), strict=False)

            async def worker() -> None:
                for number, offset in numbered:
                    await disk.write(offset, data)
                    if load.flush_every and number % load.flush_every == 0:
                        await disk.flush()

            start = time.perf_counter()
            if load.depth == 1:
                await worker()
            else:
                async with asyncio.TaskGroup() as group:
                    for _ in range(load.depth):
                        group.create_task(worker())
            return time.perf_counter() - start

    return asyncio.run(write_all())


def by_qemu_img(image: Path, load: Load) -> float:
    """Write with `qemu-img bench`; return the seconds that it says it took."""
    command = ["qemu-img", "bench", "-w", "-f", "vhdx", "-t", "writeback", f"--pattern={PATTERN}"]
    command += ["-c", str(load.writes), "-d", str(load.depth), "-s", str(LENGTH), "-S", str(load.step)]
    if load.flush_every:
        command.append(f"--flush-interval={load.flush_every}")
        if load.depth > 1:
            command.append("--no-drain")
    done = subprocess.run([*command, image], capture_output=True, check=False)
    found = _COMPLETED.search(done.stdout)
    if done.returncode or found is None:
        raise WrongResult(f"qemu-img bench ended with {done.returncode}: {done.stderr.decode()}")
    return max(float(found[1]), 0.001)


SIDES: dict[str, Callable[[Path, Load], float]] = {"qemu-img bench": by_qemu_img, "vblk": by_vblk}


def contest(
    settings: Settings, image: Path, load: Load, rounds: int, *, anew: bool
) -> dict[str, list[float]]:
    """Let both sides write to copies of `image` in turn, and return their seconds.

    With `anew` each turn gets a fresh copy.

    Raises:
        WrongResult: The disks are not the same afterwards.
    """
    copies = {name: settings.folder / f"{number}.vhdx" for number, name in enumerate(SIDES)}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(rounds + 1):
        for name, side in SIDES.items():
            if anew or not turn:
                shutil.copyfile(image, copies[name])
            _settle(copies[name], evict=anew or not turn)
            elapsed = side(copies[name], load)
            if turn:
                seconds[name].append(elapsed)
    ours, theirs = copies["vblk"], copies["qemu-img bench"]
    run(["qemu-img", "check", "-f", "vhdx", ours])
    run(["qemu-img", "compare", "-f", "vhdx", "-F", "vhdx", ours, theirs])
    asyncio.run(_check_written(ours, load))
    for path in copies.values():
        path.unlink()
    return seconds


def _settle(path: Path, *, evict: bool) -> None:
    """Bring what was written to the medium, so that no turn pays for another's; take it out of the cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        if evict:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


async def _check_written(image: Path, load: Load) -> None:
    async with vblk.open(image, format="vhdx") as disk:
        for offset in load.offsets(disk.size):
            if await disk.read(offset, LENGTH) != bytes([PATTERN]) * LENGTH:
                raise WrongResult(f"what was written at {offset} is not there")


def allocating(settings: Settings) -> Iterator[Result]:
    """Write once into each block of an empty disk, in no order."""
    blocks = 4 * settings.allocations
    image = settings.folder / "empty.vhdx"
    size = f"{blocks * BLOCK}"
    run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", f"block_size={BLOCK}", image, size])
    load = Load(settings.allocations, 1013 * BLOCK + LENGTH, 1, 64)
    if len({offset // BLOCK for offset in load.offsets(blocks * BLOCK)}) < load.writes:
        raise WrongResult("two writes fall into one block")
    seconds = contest(settings, image, load, settings.rounds, anew=True)
    yield compare("4 KiB allocating writes, flush per 64", seconds, "qemu-img bench", "vblk", 1.5)
    image.unlink()


def overwriting(settings: Settings) -> Iterator[Result]:
    """Write to pages of blocks that are there, in no order."""
    raw = make_raw(settings.folder / "source.raw", settings.overwritten_bytes)
    image = make_vhdx(raw, settings.folder / "source.vhdx")
    raw.unlink()
    for flush_every in (0, 64):
        for depth in (1, 64):
            load = Load(settings.overwrites, 7919 * LENGTH, depth, flush_every)
            seconds = contest(settings, image, load, TURNS * settings.rounds, anew=False)
            what = f"flush per {flush_every}" if flush_every else "no flush"
            name = f"4 KiB overwrites, depth {depth}, {what}"
            yield compare(name, seconds, "qemu-img bench", "vblk", 1.5)
    image.unlink()
