"""A user of a disk who remembers what was asked for, and when it was answered.

Owns: the translation of requests into steps of an `Expectation`. It moves no
bytes itself.

Ordering rule: a step begins before its request is made and ends after it was
answered; a request that fails or is cancelled never ends, so that it may have
happened or not.
"""

import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from vblk.errors import BlockError
from vblk.testing.content import Content
from vblk.testing.expectation import Expectation, Step
from vblk.testing.recording import Recorder


class Disk(Protocol):
    """What a witness can drive: a handle of the graph, or anything with the same words."""

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Write bytes; with `fua` they are stable afterwards."""

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make a range read as zeros."""

    async def discard(self, offset: int, length: int) -> None:
        """Say that a range is of no more use."""

    async def flush(self) -> None:
        """Make stable what was written."""

    async def resize(self, size: int) -> None:
        """Change the size in bytes."""


def stamp(tag: int, offset: int, length: int) -> bytes:
    """Return bytes of which every 16 say `tag` and their own place on the disk."""
    first, last = offset // 16, (offset + length + 15) // 16
    words = [value for index in range(first, last) for value in (tag, index)]
    return struct.pack(f"<{len(words)}Q", *words)[offset - first * 16 :][:length]


class Witness:
    """Makes requests to `disk`, each write with bytes of its own, and keeps the `expectation`.

    `disk` may be replaced when the image is opened anew. With `tolerant` set,
    requests that fail with a `BlockError` are noted in `failures` and passed over.
    """

    def __init__(self, recorder: Recorder, disk: Disk, initial: Content, *, tolerant: bool = False) -> None:
        self.recorder = recorder
        self.tolerant = tolerant
        self.failures: list[BlockError] = []
        self.disk = disk
        self.expectation = Expectation(initial)
        self._tag = 0

    async def write(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Write new bytes."""
        self._tag += 1
        data = stamp(self._tag, offset, length)
        async with self._step(durable=fua) as step:
            self.expectation.write(step, offset, data)
            await self.disk.write(offset, data, fua=fua)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Ask for zeros."""
        async with self._step() as step:
            self.expectation.zero(step, offset, length)
            await self.disk.write_zeroes(offset, length, unmap=unmap)

    async def discard(self, offset: int, length: int) -> None:
        """Give a range up; afterwards it may hold zeros or what it held."""
        async with self._step(weak=True) as step:
            self.expectation.zero(step, offset, length)
            await self.disk.discard(offset, length)

    async def resize(self, size: int) -> None:
        """Change the size."""
        async with self._step() as step:
            self.expectation.resize(step, size)
            await self.disk.resize(size)

    async def flush(self) -> None:
        """Flush."""
        async with self._step() as step:
            self.expectation.flush(step)
            await self.disk.flush()

    async def close(self, close: Callable[[], Awaitable[object]]) -> None:
        """Let go of the disk by `close`, which is a flush to its user."""
        async with self._step() as step:
            self.expectation.flush(step)
            await close()

    @asynccontextmanager
    async def _step(self, *, weak: bool = False, durable: bool = False) -> AsyncGenerator[Step, None]:
        step = Step(self.recorder.note(), weak=weak, durable=durable)
        try:
            yield step
        except BlockError as error:
            step.failed = True
            if not self.tolerant:
                raise
            self.failures.append(error)
        else:
            step.ended = self.recorder.note()
