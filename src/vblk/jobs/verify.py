"""Comparing a copy with what it was made from, at the end.

Owns: what is read for it. Bytes that were seen on their way (`vblk.graph.digests`) are
read from the copy alone and hashed; of the others, which the kernel moved, both sides
are read. What the source's tables call zero must read as zeros.

Ordering rule: everything is copied before its comparison begins, and neither side
changes meanwhile; who cannot promise that repeats what differs.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final

from vblk.errors import CopyDiffers
from vblk.extent import Kind
from vblk.graph.digests import Digests, Seen, new_hash
from vblk.graph.node import Node, Span, cut
from vblk.graph.plane import Mover, read_spans, reads_zero
from vblk.jobs.compare import first_difference
from vblk.jobs.copy import Source
from vblk.jobs.progress import Progress
from vblk.options import format_size
from vblk.runtime.fan_out import fan_out
from vblk.units import MIB

WORKERS: Final = 8
BUFFER: Final = MIB


class Checker:
    """Compares ranges of a target with what was seen, or is there to be read, of its source.

    `verified` counts the bytes that were compared, less the source's holes, `read_twice`
    those of them of which both sides were read.
    Concurrency: any number of checks side by side.
    """

    def __init__(self, target: Node, mover: Mover, size: int) -> None:
        """Let `mover`, which copies a disk of `size` bytes to the target, note what it sees from now on."""
        self.digests = mover.digests = Digests(size)
        self.verified = 0
        self.read_twice = 0
        self._target = target
        self._engine = mover.engine

    def summary(self) -> str:
        """Say how much was compared, and how."""
        text = f"verified {format_size(self.verified)}"
        if self.read_twice:
            text += f", {format_size(self.read_twice)} of it by reading both sides"
        return text

    async def check(self, spans: Sequence[Span], shift: int = 0) -> None:
        """Compare gapless spans of the source, one of zeros or some of data, with the target.

        `shift` is the target's offset less the source's, in bytes.

        Raises:
            CopyDiffers: They are not the same.
            StorageError: One side cannot be read.
        """
        start = spans[0].guest_offset + shift
        end = spans[-1].guest_offset + spans[-1].length + shift
        if spans[0].kind is Kind.ZERO:
            if not await reads_zero(self._target, start, end - start):
                await self._compare(spans, shift, start, end)
            return
        for at, stop, seen in self.digests.ranges(start, end - start):
            self.verified += stop - at
            if seen is None:
                self.read_twice += stop - at
                await self._compare(spans, shift, at, stop)
            elif not await self._is_as_seen(seen):
                await self._compare(spans, shift, at, stop)
                raise CopyDiffers(self._target.filename, at)  # the source itself is not what it was

    async def check_seen(self, seen: Seen) -> None:
        """Compare what was seen with the target alone.

        Raises:
            CopyDiffers: It is not the same.
            StorageError: The target cannot be read.
        """
        if not await self._is_as_seen(seen):
            raise CopyDiffers(self._target.filename, seen.start)
        self.verified += seen.end - seen.start

    async def _is_as_seen(self, seen: Seen) -> bool:
        if seen.hash is None:
            return await reads_zero(self._target, seen.start, seen.end - seen.start)
        hash = new_hash()
        buffer = memoryview(bytearray(min(BUFFER, seen.end - seen.start)))
        for at in range(seen.start, seen.end, BUFFER):
            piece = buffer[: seen.end - at]
            await self._target.read_into(at, piece)
            await self._engine.run(partial(hash.update, piece))
        return hash.digest() == seen.hash.digest()

    async def _compare(self, spans: Sequence[Span], shift: int, start: int, end: int) -> None:
        for at in range(start, end, BUFFER):
            stop = min(at + BUFFER, end)
            ours, theirs = bytearray(stop - at), bytearray(stop - at)
            await read_spans(list(_within(spans, at - shift, stop - shift)), at - shift, memoryview(ours))
            await self._target.read_into(at, memoryview(theirs))
            if ours != theirs:
                raise CopyDiffers(self._target.filename, at + first_difference(ours, theirs))


def _within(spans: Iterable[Span], start: int, end: int) -> Iterable[Span]:
    """Yield the parts of spans in a range."""
    for span in spans:
        first = max(start, span.guest_offset)
        last = min(end, span.guest_offset + span.length)
        if first < last:
            yield cut(span, first - span.guest_offset, last - first)


async def grouped(spans: AsyncIterator[Span], unit: int, shift: int = 0) -> AsyncGenerator[list[Span]]:
    """Yield spans as `Checker.check` wants them: zeros alone, gapless data up to where a unit ends."""
    group: list[Span] = []
    end = -1
    async for span in spans:
        if group and (span.kind is Kind.ZERO or span.guest_offset != end):
            yield group
            group = []
        end = span.guest_offset + span.length
        if span.kind is Kind.ZERO:
            yield [span]
            continue
        done = 0
        while done < span.length:
            goal = span.guest_offset + done + shift
            length = min(unit - goal % unit, span.length - done)
            group.append(cut(span, done, length))
            done += length
            if (goal + length) % unit == 0:
                yield group
                group = []
    if group:
        yield group


async def check_all(
    groups: AsyncIterator[list[Span]], check: Callable[[list[Span]], Coroutine[Any, Any, object]]
) -> None:
    """Check groups of spans side by side.

    Raises: what `check` raises.
    """
    lock = asyncio.Lock()

    async def work() -> None:
        while True:
            async with lock:
                group = await anext(groups, None)
            if group is None:
                return
            await check(group)

    await fan_out((work() for _ in range(WORKERS)), WORKERS)


async def check_copy(checker: Checker, sources: Sequence[Source], progress: Progress | None = None) -> None:
    """Compare all of a copy that nobody changes.

    Raises:
        CopyDiffers: It is not what it was made from.
        StorageError: One side cannot be read.
    """
    if progress is not None:
        progress.start(sum(source.span[1] for source in sources))
    for source in sources:

        async def check(group: list[Span], shift: int = source.shift) -> None:
            await checker.check(group, shift)
            if progress is not None:
                progress.add(sum(span.length for span in group))

        await check_all(grouped(source.spans(), checker.digests.unit, source.shift), check)
    if progress is not None:
        progress.finish()
