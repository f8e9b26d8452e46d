"""Whatever is done to a qcow2 image and wherever it crashes: nothing that was flushed is lost.

And no sector shows what was written elsewhere; at worst some space is counted
that nothing uses.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash import SEED, SEEDS, Session
from tests.support.crash_workloads import cancelled, reuse, trim_and_rewrite
from tests.support.qcow2_crash import Qcow2Session, explore, start_files
from vblk.graph.recording import add_bitmap, remove_bitmap
from vblk.testing import Action, Content
from vblk.testing.witness import stamp

KIB = 1024
SIZE = 8 * 1024 * KIB
SMALL = 64 * KIB

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "small": {"cluster_size": 4 * KIB, "version": 2},
    "overlay": {"cluster_size": 16 * KIB, "base": stamp(1 << 50, 0, 6 * 1024 * KIB)},
}


async def mixed(session: Session) -> None:
    """Allocate, share tables, zero, discard and write again, with few flushes."""
    disk, lot = session.disk, session.lot
    for _ in range(8):
        at_once: list[Awaitable[None]] = []
        for number in lot.sample(range(6), lot.choice((1, 2, 3))):
            start = number * 128 * KIB + lot.choice((0, 512, 12 * KIB, 60 * KIB))
            kind = lot.random()
            if kind < 0.6:
                at_once.append(
                    disk.write(start, lot.choice((512, 4 * KIB, 20 * KIB)), fua=lot.random() < 0.1)
                )
            elif kind < 0.8:
                at_once.append(disk.write_zeroes(number * 128 * KIB, 64 * KIB, unmap=lot.random() < 0.5))
            else:
                at_once.append(disk.discard(number * 128 * KIB, 128 * KIB))
        if lot.random() < 0.5:
            at_once.append(disk.flush())
        await asyncio.gather(*at_once)


async def sizes(session: Session) -> None:
    """Grow, cut and grow again, with bytes at the ends; the L1 table moves."""
    disk = session.disk
    await disk.write(SMALL - 4 * KIB, 4 * KIB)
    await disk.resize(3 * SMALL)
    await disk.write(2 * SMALL, 4 * KIB)
    await disk.flush()
    await disk.resize(SMALL - 2 * KIB)
    await disk.resize(4 * SMALL)
    await disk.write(3 * SMALL, 4 * KIB)
    await disk.flush()


async def more_counts(session: Session) -> None:
    """Write until the refcount table has to grow."""
    disk = session.disk
    await disk.write(0, 4 * KIB)
    await disk.flush()
    for at in range(0, 1280 * KIB, 320 * KIB):
        await disk.write(at, 320 * KIB)
    await disk.flush()
    await disk.write(8 * KIB, 4 * KIB)


async def packed(session: Session) -> None:
    """Compress whole clusters, over others that are and are not, and write over pieces of them."""
    disk = session.disk
    graph, node = session.opened
    node.compress(graph.engine)
    await disk.write(0, 256 * KIB)
    await disk.write(320 * KIB, 100 * KIB)
    await disk.flush()
    await disk.write(60 * KIB, 8 * KIB)
    await asyncio.gather(disk.write(128 * KIB, 192 * KIB), disk.write(1024 * KIB, 64 * KIB))
    await disk.discard(320 * KIB, 64 * KIB)
    await disk.flush()
    node.compress(None)
    await disk.write(192 * KIB, 64 * KIB)
    await disk.write_zeroes(1024 * KIB, 64 * KIB, unmap=True)


async def bitmaps(session: Session) -> None:
    """Keep bitmaps from the first change on, through two openings, and let one of them go."""
    disk = session.disk
    for name in ("one", "two"):
        await add_bitmap(*session.opened, name, granularity=512, persistent=True)
    await disk.write(0, 4 * KIB)
    await disk.write(300 * KIB, 20 * KIB)
    await session.close()
    await session.open()
    await disk.write(128 * KIB, 8 * KIB)
    remove_bitmap(session.opened[1], "two")
    await session.close()
    await session.open()
    await disk.write_zeroes(0, 2 * KIB)
    await disk.write(512 * KIB, 4 * KIB)


WORKLOADS: dict[str, Callable[[Session], Awaitable[None]]] = {
    workload.__name__: workload for workload in (reuse, trim_and_rewrite, cancelled, mixed, packed)
}


def recorded(
    size: int, workload: Callable[[Session], Awaitable[None]], seed: int, **shape: Any
) -> Qcow2Session:
    async def main() -> Qcow2Session:
        files = await start_files(size, **shape)
        disk = Content(size)
        if "base" in files:
            disk.write(0, shape["base"][:size])
        session = Qcow2Session(files, ["disk"], disk, seed=seed)
        await session.run(workload)
        return session

    return asyncio.run(main())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_crash_loses_or_shows_anything(tmp_path: Path, shape: str, workload: str, seed: int) -> None:
    session = recorded(SIZE, WORKLOADS[workload], seed, **SHAPES[shape])
    asyncio.run(explore(session, tmp_path, seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_crash_mixes_sizes(tmp_path: Path, seed: int) -> None:
    session = recorded(SMALL, sizes, seed, cluster_size=512)
    asyncio.run(explore(session, tmp_path, seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_crash_meets_half_a_refcount_table(tmp_path: Path, seed: int) -> None:
    session = recorded(2 * 1024 * KIB, more_counts, seed, cluster_size=512, refcount_bits=64)
    asyncio.run(explore(session, tmp_path, seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cluster_size", [512, 16 * KIB])
def test_no_crash_leaves_a_bitmap_that_lacks_a_change(tmp_path: Path, cluster_size: int, seed: int) -> None:
    session = recorded(SIZE, bitmaps, seed, cluster_size=cluster_size)
    asyncio.run(explore(session, tmp_path, seed=seed))


def test_the_judge_notices_when_flushes_do_nothing(tmp_path: Path) -> None:
    session = recorded(SIZE, reuse, SEED, **SHAPES["overlay"])
    flushes = frozenset(
        event.operation
        for event in session.recorder.events
        if event.ends and event.operation is not None and event.operation.action is Action.FLUSH
    )
    with pytest.raises(AssertionError):
        asyncio.run(explore(session, tmp_path, seed=SEED, ignored=flushes))
