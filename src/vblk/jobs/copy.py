"""Copying whole images: what is moved, what stays a hole, in which order, how fast.

Owns: the walk over the sources, the workers, the rate limit, sparse detection and
salvage. It moves bytes by `Mover` where the kernel can carry them, else through
memory; it knows no format and prints nothing.

Ordering rule: unless out of order is allowed, a piece is written when all pieces
before it are, so the target grows like a file that is written from its start;
what passes memory is read ahead meanwhile.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from vblk.aio.clock import Clock
from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.graph.mapper import Mapper
from vblk.graph.node import Leaf, Node, Span
from vblk.graph.plane import Mover
from vblk.jobs.progress import Progress
from vblk.jobs.rate import RateLimit
from vblk.jobs.walk import walk, walk_salvaging
from vblk.units import GIB, KIB, MIB, align_up

KERNEL_PIECE = 16 * MIB
MEMORY_PIECE = 2 * MIB
ZERO_PIECE = GIB
SECTOR = 512

_ZEROS = bytes(MEMORY_PIECE)


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """How images are copied.

    `sparse` None: what the maps call zero stays a hole, and no byte is read
    only to look for zeros. 0: everything is written. Else, in bytes, a multiple
    of 512: data is read, and runs of zeros that long become holes.
    `target_is_zero` says that the target reads as zeros already. `salvage`
    replaces what cannot be read with zeros. `rate` is in bytes a second.
    """

    workers: int = 8
    out_of_order: bool = False
    sparse: int | None = None
    target_is_zero: bool = False
    salvage: bool = False
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A range of an image to copy, and how far its bytes move: target offset less guest offset.

    `length` None: to the image's end. All in bytes.
    """

    handle: Handle
    shift: int
    start: int = 0
    length: int | None = None

    @property
    def span(self) -> tuple[int, int]:
        """First byte and length in bytes."""
        return self.start, self.handle.size - self.start if self.length is None else self.length


@dataclass(slots=True)
class _Piece:
    """A run that one worker copies in one go."""

    number: int
    source: Source
    span: Span


def concatenated(handles: Sequence[Handle]) -> list[Source]:
    """Place images behind each other."""
    sources: list[Source] = []
    offset = 0
    for handle in handles:
        sources.append(Source(handle, offset))
        offset += handle.size
    return sources


class CopyJob:
    """One copy of one or more images into a target that is large enough.

    Args:
        sources: What is copied; the ranges in the target must not overlap.
        target: Where it goes, open for writing.
        plan: How.
        mover: The data plane.
        progress: Told of the data bytes, if anybody wants to know.
        salvaged: Told of each place that could not be read: "status" or "read",
            the source, the offset in it, and why.
        clock: For the rate limit.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        target: Handle,
        plan: CopyPlan,
        mover: Mover,
        *,
        clock: Clock,
        progress: Progress | None = None,
        salvaged: Callable[[str, Source, int, BlockError], None] | None = None,
    ) -> None:
        self._sources = sources
        self._target = target
        self._plan = plan
        self._mover = mover
        self._progress = progress
        self._salvaged = salvaged
        self._clock = clock
        self._limit: RateLimit | None = None
        self._turns = _Turnstile(ordered=not plan.out_of_order)
        self._target_in_kernel = False
        self._step = KERNEL_PIECE

    async def run(self) -> None:
        """Copy everything; flush the target to be sure of it.

        Raises:
            StorageError: A side failed; the target holds an unknown part.
            NoSpace: The target is full.
        """
        plan = self._plan
        if plan.rate is not None:
            self._limit = RateLimit(plan.rate, self._clock)
            self._step = max(64 * KIB, min(KERNEL_PIECE, align_up(plan.rate // 8 + 1, 64 * KIB)))
        if self._progress is not None or plan.salvage:
            total = await self._count_data()
            if self._progress is not None:
                self._progress.start(total)
        self._target_in_kernel = _reaches_kernel(self._target.node)
        pieces = self._pieces()
        lock = asyncio.Lock()
        workers = 1 if plan.salvage else plan.workers
        tasks = [asyncio.ensure_future(self._work(pieces, lock)) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._progress is not None:
            self._progress.finish()

    async def _count_data(self) -> int:
        total = 0
        for source in self._sources:
            async for span in self._walk(source):
                if self._is_work(span):
                    total += span.length
        return total

    def _is_work(self, span: Span) -> bool:
        return span.kind is not Kind.ZERO or self._plan.sparse == 0

    def _walk(self, source: Source) -> AsyncIterator[Span]:
        handle = source.handle
        start, length = source.span
        if not self._plan.salvage:
            return walk(handle, start, length)

        def lost(offset: int, error: BlockError) -> None:
            if self._salvaged is not None:
                self._salvaged("status", source, offset, error)

        return walk_salvaging(handle, start, length, lost)

    async def _pieces(self) -> AsyncIterator[_Piece]:
        number = 0
        for source in self._sources:
            async for span in self._walk(source):
                if span.kind is Kind.ZERO and self._plan.sparse != 0 and self._plan.target_is_zero:
                    continue
                step = self._step_for(span)
                for done in range(0, span.length, step):
                    part = replace(
                        span,
                        guest_offset=span.guest_offset + done,
                        length=min(step, span.length - done),
                        leaf_offset=span.leaf_offset + done,
                    )
                    yield _Piece(number, source, part)
                    number += 1

    def _step_for(self, span: Span) -> int:
        if span.kind is Kind.ZERO and self._plan.sparse != 0:
            return ZERO_PIECE
        return self._step if self._is_for_kernel(span) else min(self._step, MEMORY_PIECE)

    def _is_for_kernel(self, span: Span) -> bool:
        plan = self._plan
        return (
            span.kind is Kind.DATA
            and not plan.sparse
            and not plan.salvage
            and self._target_in_kernel
            and _has_descriptor(span.leaf)
        )

    async def _work(self, pieces: AsyncIterator[_Piece], lock: asyncio.Lock) -> None:
        while True:
            async with lock:
                piece = await anext(pieces, None)
            if piece is None:
                return
            if self._limit is not None and self._is_work(piece.span):
                await self._limit.take(piece.span.length)
            await self._copy(piece)
            if self._progress is not None and self._is_work(piece.span):
                self._progress.add(piece.span.length)

    async def _copy(self, piece: _Piece) -> None:
        span = piece.span
        goal = piece.source.shift + span.guest_offset
        if span.kind is Kind.ZERO:
            async with self._turns.turn(piece.number):
                await self._write_zero_span(goal, span.length)
        elif self._is_for_kernel(span):
            async with self._turns.turn(piece.number):
                await self._mover.move(span, self._target.node, goal)
        else:
            buffer = bytearray(span.length)
            await self._read(piece.source, span.guest_offset, memoryview(buffer))
            async with self._turns.turn(piece.number):
                await self._write(goal, buffer)

    async def _write_zero_span(self, goal: int, length: int) -> None:
        if self._plan.sparse == 0:
            await self._target.write(goal, memoryview(_ZEROS)[:length])
        else:
            await self._target.write_zeroes(goal, length, unmap=True)

    async def _read(self, source: Source, offset: int, buffer: memoryview) -> None:
        try:
            await source.handle.read_into(offset, buffer)
        except BlockError:
            if not self._plan.salvage:
                raise
            for start in range(0, len(buffer), SECTOR):
                sector = buffer[start : start + SECTOR]
                try:
                    await source.handle.read_into(offset + start, sector)
                except BlockError as error:
                    sector[:] = bytes(len(sector))
                    if self._salvaged is not None:
                        self._salvaged("read", source, offset + start, error)

    async def _write(self, goal: int, data: bytearray) -> None:
        if not self._plan.sparse:
            await self._target.write(goal, data)
            return
        for start, length, is_data in runs_of_zeros(data, self._plan.sparse):
            if is_data:
                await self._target.write(goal + start, memoryview(data)[start : start + length])
            elif not self._plan.target_is_zero:
                await self._target.write_zeroes(goal + start, length, unmap=True)


def _reaches_kernel(node: Node) -> bool:
    """Tell whether what is written to `node` lands in a leaf that the kernel can copy to."""
    while isinstance(node, Mapper):
        node = node.file
    return _has_descriptor(node)


def _has_descriptor(node: Node | None) -> bool:
    return isinstance(node, Leaf) and node.descriptor() is not None


def runs_of_zeros(data: bytes | bytearray, unit: int) -> list[tuple[int, int, bool]]:
    """Divide bytes into runs of (start, length, has data), by units of `unit` bytes."""
    runs: list[tuple[int, int, bool]] = []
    if data == _ZEROS[: len(data)]:
        return [(0, len(data), False)]
    zero = bytes(unit)
    for start in range(0, len(data), unit):
        part = data[start : start + unit]
        has_data = part != zero[: len(part)]
        if runs and runs[-1][2] == has_data:
            first, length, _ = runs[-1]
            runs[-1] = (first, length + len(part), has_data)
        else:
            runs.append((start, len(part), has_data))
    return runs


class _Turnstile:
    """Lets numbered tasks through one after another, in the order of their numbers."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def turn(self, number: int) -> AsyncGenerator[None]:
        """Hold the turn of `number`; it is the next one's only when the block ends well."""
        if self._ordered and number != self._next:
            future = self._waiting[number] = asyncio.get_running_loop().create_future()
            await future
        yield
        if self._ordered:
            self._next = number + 1
            waiting = self._waiting.pop(self._next, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
