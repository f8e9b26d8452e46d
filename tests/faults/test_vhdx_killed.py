"""A process that writes to an image is killed, again and again, at any instant.

Every time the image opens, its check is clean, and what the process had flushed
is there. The kernel survives here, so what is tested is the order of the writes
and the recovery; what a lost page cache does is for the crash tests.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.support.crash import NIGHTLY, SEED, Seen, assert_checked, look, run_qemu_img
from tests.support.killed_writer import expectation
from vblk.drivers.vhdx_create import create_image
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import parse_filename
from vblk.testing import Content

MIB = 1 << 20
KILLS = 60 if NIGHTLY else 6


async def create(path: Path, new: NewVhdx) -> None:
    async with Graph() as graph:
        handle = await open_image(graph, parse_filename(str(path), format="raw"), read_only=False)
        await create_image(handle.node, new)


async def look_at(path: Path, *, read_only: bool, clean: bool = False) -> Seen:
    async with Graph() as graph:
        handle = await open_image(graph, str(path), format="vhdx", read_only=read_only)
        if read_only:
            await assert_checked(handle, clean=clean)
        return await look(handle)


def run_until_killed(path: Path, seed: int, lines: int) -> list[str]:
    """Let the writer say so many lines, kill it, and return all that it said."""
    command = [sys.executable, "-m", "tests.support.killed_writer", str(path), str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    complete = [line for line in said if line.endswith("\n")]
    assert len(complete) >= lines, "the writer ended by itself"
    return complete


@pytest.mark.parametrize(
    "new",
    [
        NewVhdx(size=12 * MIB, block_size=MIB),
        NewVhdx(size=12 * MIB, block_size=MIB, logical_sector_size=4096, block_state_zero=False),
    ],
    ids=["dynamic", "4096"],
)
def test_a_killed_writer_leaves_every_flushed_write(tmp_path: Path, new: NewVhdx) -> None:
    path = tmp_path / "disk.vhdx"
    assert new.size is not None
    path.touch()
    asyncio.run(create(path, new))
    disk = Content(new.size)
    lot = Random(SEED)
    for seed in range(SEED, SEED + KILLS):
        said = run_until_killed(path, seed, lot.randrange(1, 120))
        seen = asyncio.run(look_at(path, read_only=True))
        expected = expectation(disk, seed, said)
        expected.judge(expected.allowed(len(said)), seen.size, seen.pages)
        if lot.random() < 0.5:  # else the next writer finds the log as it was left
            assert asyncio.run(look_at(path, read_only=False)) == seen
            assert asyncio.run(look_at(path, read_only=True, clean=True)) == seen
            if new.logical_sector_size is None:
                run_qemu_img("check", "-f", "vhdx", path)
        disk = Content(seen.size, dict(seen.pages))
