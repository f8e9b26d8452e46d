"""A real file system fills up under a VHDX image, at one write after another.

The error is "no space", the check is clean afterwards, and what was flushed is
there; whatever the host had no room for can be written when there is room again.
"""

import asyncio
import os
from pathlib import Path
from random import Random

import pytest

from tests.faults.test_vhdx_killed import create, look_at
from tests.support.crash import NIGHTLY, Seen
from tests.support.filesystems import mounted, needs_root
from vblk.drivers.vhdx import VhdxNode
from vblk.errors import BlockError, NodeFailed, NoSpace
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.testing import Content, Recorder, Witness

KIB, MIB = 1 << 10, 1 << 20
pytestmark = pytest.mark.timeout(900)
"""Every flush waits for a medium that others may be using, too."""

SIZE = 12 * MIB
STEP = 16 * KIB if NIGHTLY else 256 * KIB


def leave_room(place: Path, room: int) -> Path:
    """Fill a file system with a file, so that `room` bytes are left, or as many as can be left."""
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        for step in (MIB, 64 * KIB, 4 * KIB):
            status = os.statvfs(place)
            while status.f_bavail * status.f_frsize - room >= step:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError:
                    break
                status = os.statvfs(place)
    return ballast


async def write_until_full(path: Path, disk: Content, seed: int) -> Witness:
    """Write, zero and flush at random, until closing; whatever fails for want of space is passed over."""
    lot = Random(seed)
    graph = Graph()
    handle = await open_image(graph, str(path), format="vhdx", read_only=False)
    assert isinstance(handle.node, VhdxNode)
    witness = Witness(Recorder(), handle, disk, tolerant=True)
    for _ in range(40):
        block = lot.randrange(SIZE // MIB) * MIB
        if lot.random() < 0.7:
            await witness.write(block + lot.randrange(0, MIB // 2, 512), lot.choice((4, 20, 200)) * KIB)
        else:
            await witness.write_zeroes(block, MIB, unmap=True)
        if lot.random() < 0.4:
            await witness.flush()
    failures = len(witness.failures)
    await witness.close(graph.close)
    if len(witness.failures) > failures:
        witness.expectation.forsake(witness.recorder.now)
    return witness


def judge(witness: Witness, seen: Seen) -> None:
    expectation = witness.expectation
    expectation.judge(expectation.allowed(witness.recorder.now), seen.size, seen.pages)


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
def test_a_file_system_that_fills_up_at_any_write_loses_nothing(tmp_path: Path, kind: str) -> None:
    failures: list[BlockError] = []
    with mounted(kind, (320 if kind == "xfs" else 40) * MIB, tmp_path) as place:
        path = place / "disk.vhdx"
        for seed, room in enumerate(range(0, 2 * MIB, STEP)):
            path.unlink(missing_ok=True)
            path.touch()
            asyncio.run(create(path, NewVhdx(size=SIZE, block_size=MIB)))
            ballast = leave_room(place, room)
            witness = asyncio.run(write_until_full(path, Content(SIZE), seed))
            failures += witness.failures
            judge(witness, asyncio.run(look_at(path, read_only=True)))
            ballast.unlink()
            seen = asyncio.run(look_at(path, read_only=False))
            judge(witness, seen)
            again = asyncio.run(write_until_full(path, Content(SIZE, dict(seen.pages)), seed + 1000))
            assert again.failures == []
            judge(again, asyncio.run(look_at(path, read_only=True, clean=True)))
    assert failures
    assert all(isinstance(error, NoSpace | NodeFailed) for error in failures), failures
    assert any(isinstance(error, NoSpace) for error in failures)
