"""Every system call of a file node fails once, or from then on; every turn is cancelled.

Whatever happens, errors are typed, nothing stays open or locked, and every
block of the file is one that was there or one that was written.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.cancellation import cancel_after
from tests.support.local_files import with_engine
from vblk.aio.threads import ThreadEngine
from vblk.errors import BlockError
from vblk.protocols import file_space
from vblk.protocols.cache_mode import parse_cache_mode
from vblk.protocols.file import Options, open_file

BLOCK = 4096
BLOCKS = 16
OLD = b"o" * BLOCK * BLOCKS
CALLS = ("open", "fstat", "stat", "pread", "preadv", "pwrite", "fdatasync", "ftruncate", "lseek", "dup2")


class Faults:
    """Counts system calls on the test's file and fails one of them, or all from it on."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, for_ever: bool) -> None:
        self.at = -1
        self.count = 0
        self.number = number
        self.for_ever = for_ever
        self.failed = False
        for name in CALLS:
            patch.setattr(os, name, self.wrapped(getattr(os, name)))
        patch.setattr(file_space, "fallocate", self.wrapped(file_space.fallocate))  # type: ignore[attr-defined]

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            if self.at >= 0:
                self.count += 1
                if self.count == self.at or (self.for_ever and self.count > self.at):
                    self.failed = True
                    raise OSError(self.number, os.strerror(self.number))
            return call(*arguments, **options)

        return counting

    def arm(self, at: int) -> None:
        self.at, self.count, self.failed = at, 0, False

    def disarm(self) -> None:
        self.at = -1


async def scenario(engine: ThreadEngine, path: Path, cache: str) -> None:
    node = await open_file(
        engine, Options(str(path)), name="n", read_only=True, cache=parse_cache_mode(cache)
    )
    try:
        await node.reopen(read_only=False)
        await node.write(BLOCK, b"n" * BLOCK)
        await node.write(3 * BLOCK - 100, b"n" * 200)
        await node.flush()
        await node.write_zeroes(5 * BLOCK, 2 * BLOCK, unmap=True)
        await node.write_zeroes(8 * BLOCK, 2 * BLOCK)
        node.try_read(0, BLOCK)
        await node.read(0, 4 * BLOCK)
        await node.allocation(0, BLOCK * BLOCKS)
        await asyncio.gather(node.flush(), node.write(12 * BLOCK, b"n" * BLOCK, fua=True))
    finally:
        await node.close()


def check_content(path: Path) -> None:
    content = path.read_bytes()
    new = bytearray(OLD)
    new[BLOCK : 2 * BLOCK] = new[12 * BLOCK : 13 * BLOCK] = b"n" * BLOCK
    new[3 * BLOCK - 100 : 3 * BLOCK + 100] = b"n" * 200
    new[5 * BLOCK : 7 * BLOCK] = new[8 * BLOCK : 10 * BLOCK] = bytes(2 * BLOCK)
    assert len(content) == len(OLD)
    for start in range(0, len(OLD), 512):
        piece = content[start : start + 512]
        allowed = {bytes(OLD[start : start + 512]), bytes(new[start : start + 512])}
        if 8 * BLOCK <= start < 10 * BLOCK or 5 * BLOCK <= start < 7 * BLOCK:
            allowed.add(bytes(512))
        assert piece in allowed, f"strange bytes at {start:#x}"


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("cache", ["writeback", "none", "directsync"])
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EOPNOTSUPP, errno.EINVAL])
def test_any_failing_call_gives_typed_errors_and_releases_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, for_ever: bool, number: int
) -> None:
    path = tmp_path / "disk"

    async def sweep(engine: ThreadEngine) -> None:
        await engine.run(lambda: None)
        faults = Faults(monkeypatch, number, for_ever)
        before = open_descriptors()
        at = 0
        while True:
            at += 1
            path.write_bytes(OLD)
            faults.arm(at)
            with suppress(BlockError):
                await scenario(engine, path, cache)
            fault_met = faults.failed
            faults.disarm()
            assert open_descriptors() == before
            check_content(path)
            if not fault_met:
                break
        assert at > 15

    with_engine(sweep)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_cancelling_at_any_turn_releases_everything(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "disk"

    async def sweep(engine: ThreadEngine) -> None:
        await engine.run(lambda: None)
        before = open_descriptors()
        turns = 0
        while True:
            path.write_bytes(OLD)
            cancelled = await cancel_after(scenario(engine, path, cache), turns)
            assert open_descriptors() == before
            check_content(path)
            if not cancelled:
                break
            turns = turns + 1 if turns < 60 else turns * 2

    with_engine(sweep)


def test_a_full_disk_leaves_the_length_of_a_direct_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"o" * 1000)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def run(engine: ThreadEngine) -> None:
        node = await open_file(
            engine, Options(str(path)), name="n", read_only=False, cache=parse_cache_mode("none")
        )
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse)
            with pytest.raises(BlockError):
                await node.write(990, b"n" * 30)
        assert node.size == 1000
        await node.close()

    with_engine(run)
    assert path.read_bytes() == b"o" * 1000
