"""Copying whole images: what is moved, what stays a hole, in which order, how fast.

Owns: the walk over the sources, the workers, the rate limit, sparse detection and
salvage. It moves bytes by `Mover` where the kernel can carry them, else through
memory; it knows no format and prints nothing.

Ordering rule: unless out of order is allowed, a piece has its place in the target
when all pieces before it have theirs, and all but the last two are written; so the
target grows like a file that is written from its start. What passes memory is read
ahead meanwhile.
"""

import asyncio
import enum
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vblk.aio.clock import Clock
from vblk.errors import BlockError, ImageError
from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.graph.mapper import has_descriptor, reaches_kernel
from vblk.graph.node import Span, cut
from vblk.graph.plane import Mover
from vblk.graph.sparse_copy import data_runs
from vblk.jobs.compare import differing_runs, surely_equal
from vblk.jobs.progress import Progress
from vblk.jobs.rate import RateLimit
from vblk.jobs.walk import walk, walk_salvaging
from vblk.runtime.fan_out import fan_out
from vblk.units import GIB, KIB, MIB, align_down, align_up

KERNEL_PIECE = 128 * MIB
"""What the kernel is handed in one go; where it can share extents that is one call."""
SEARCHED_PIECE = 32 * MIB
"""The same where zeros are left out: several workers share the search."""
WATCHED_PIECE = 16 * MIB
"""The same when somebody watches the progress."""
UNITS_MOST = 64
"""So many units, or as much as `WATCHED_PIECE`, go into a target that allocates: it plans for each."""
MEMORY_PIECE = 2 * MIB
ZERO_PIECE = GIB
SECTOR = 512
ZEROS_LEFT_OUT = 4 * KIB
DIFFERENCE_UNIT = 4 * KIB

OVERLAP = 3
"""How many pieces may be written at a time when order counts: two move while the next is handed over."""

_ZEROS = bytes(MEMORY_PIECE)


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """How images are copied.

    `sparse`, in bytes, a multiple of 512: runs of zeros that long become holes.
    0: everything is written. None: what the maps call zero stays a hole; where
    the target's storage can share the data it does; else a target that reads as
    zeros is spared the zeros in the data, by runs of `ZEROS_LEFT_OUT` bytes.
    `offload`: the kernel copies, and nothing is looked through.
    `target_is_zero` says that the target reads as zeros already. `differences`
    leaves out what the target shows already, as a new child does its parent's
    data: the rest is compared, by units of `DIFFERENCE_UNIT` bytes, unless the
    kernel copies or everything is written. `salvage` replaces what cannot be read
    with zeros. `compress` writes whole clusters, for a target that compresses them.
    `rate` is in bytes a second.
    """

    workers: int = 8
    out_of_order: bool = False
    sparse: int | None = None
    offload: bool = False
    target_is_zero: bool = False
    differences: bool = False
    salvage: bool = False
    compress: bool = False
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A range of an image to copy, and how far its bytes move: target offset less guest offset.

    `length` None: to the image's end. All in bytes. `walk` says, of (offset,
    length), what there is to copy; by default all that the image shows.
    """

    handle: Handle
    shift: int
    start: int = 0
    length: int | None = None
    walk: Callable[[int, int], AsyncIterator[Span]] | None = None

    @property
    def span(self) -> tuple[int, int]:
        """First byte and length in bytes."""
        return self.start, self.handle.size - self.start if self.length is None else self.length

    def spans(self) -> AsyncIterator[Span]:
        """Yield what there is to copy, in order."""
        start, length = self.span
        return walk(self.handle, start, length) if self.walk is None else self.walk(start, length)


class Loss(enum.Enum):
    """What could not be had of a source."""

    DAMAGED = "damaged"
    """A range is hidden by damage to the image."""
    STATUS = "status"
    """It is not known what a sector is."""
    READ = "read"
    """A sector cannot be read."""


@dataclass(slots=True)
class _Piece:
    """A run that one worker copies in one go."""

    number: int
    source: Source
    span: Span


def concatenated(handles: Sequence[Handle], done: int = 0) -> list[Source]:
    """Place images behind each other, and leave out what lies before offset `done` of the target."""
    sources: list[Source] = []
    offset = 0
    for handle in handles:
        sources.append(Source(handle, offset, start=min(max(0, done - offset), handle.size)))
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
        salvaged: Told of each place that could not be read: what was tried, the
            source, offset and length in it, and why.
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
        salvaged: Callable[[Loss, Source, int, int, BlockError], None] | None = None,
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
        self._under_way: dict[int, int] = {}
        """Where in the target the pieces go that are being copied, in their order."""
        self._handed_out = 0
        """Where the last piece ends that a worker has taken."""
        self._zero_unit = 0
        if plan.target_is_zero and plan.sparse is None and not plan.offload:
            self._zero_unit = target.node.allocation_unit if plan.compress else ZEROS_LEFT_OUT
        unwatched = SEARCHED_PIECE if self._zero_unit else KERNEL_PIECE
        self._step = unwatched if progress is None else WATCHED_PIECE

    async def run(self) -> None:
        """Copy everything; flush the target to be sure of it.

        Raises:
            StorageError: A side failed; the target holds an unknown part.
            NoSpace: The target is full.
        """
        plan = self._plan
        if plan.rate is not None:
            self._limit = RateLimit(plan.rate, self._clock)
            self._step = max(64 * KIB, min(WATCHED_PIECE, align_up(plan.rate // 8 + 1, 64 * KIB)))
        if self._progress is not None or plan.salvage:
            total = await self._count_data()
            if self._progress is not None:
                self._progress.start(total)
        self._target_in_kernel = reaches_kernel(self._target.node)
        if unit := self._target.node.allocation_unit:
            self._step = min(self._step, max(WATCHED_PIECE, unit * UNITS_MOST))
        pieces = self._pieces()
        lock = asyncio.Lock()
        workers = 1 if plan.salvage else plan.workers
        await fan_out((self._work(pieces, lock) for _ in range(workers)), workers)
        if self._progress is not None:
            self._progress.finish()

    def copied_to(self) -> int:
        """Return an offset of the target before which everything is copied, in bytes, though not flushed."""
        return min(self._under_way.values(), default=self._handed_out)

    async def _count_data(self) -> int:
        total = 0
        for source in self._sources:
            async for span in self._spans(source, counting=True):
                if self._is_work(span):
                    total += span.length
        return total

    def _is_work(self, span: Span) -> bool:
        return span.kind is not Kind.ZERO or self._plan.sparse == 0

    def _walk(self, source: Source, *, counting: bool = False) -> AsyncIterator[Span]:
        if source.walk is not None or not self._plan.salvage:
            return source.spans()

        def lost(offset: int, length: int, error: BlockError) -> None:
            damaged = isinstance(error, ImageError)
            if self._salvaged is not None and not (damaged and counting):
                what = Loss.DAMAGED if damaged else Loss.STATUS
                self._salvaged(what, source, offset, length, error)

        return walk_salvaging(source.handle, *source.span, lost)

    async def _spans(self, source: Source, *, counting: bool = False) -> AsyncIterator[Span]:
        """Yield the spans of a source that the tables alone do not show to be in the target already."""
        async for span in self._walk(source, counting=counting):
            if not self._plan.differences or self._plan.sparse == 0:
                yield span
                continue
            start = end = 0
            async for there in walk(self._target, source.shift + span.guest_offset, span.length):
                if surely_equal(cut(span, end, there.length), there):
                    if start < end:
                        yield cut(span, start, end - start)
                    start = end + there.length
                end += there.length
            if start < end:
                yield cut(span, start, end - start)

    async def _in_whole_clusters(self, source: Source) -> AsyncIterator[Span]:
        """Yield the spans of a source, of data all clusters of the target in which there is any."""
        unit, shift = self._target.node.allocation_unit, source.shift
        at, length = source.span
        end = at + length
        async for span in self._spans(source):
            if span.kind is Kind.ZERO:
                start, stop = span.guest_offset, span.guest_offset + span.length
                start = align_up(start + shift, unit) - shift
                stop = stop if stop == end else align_down(stop + shift, unit) - shift
                if start < stop:
                    if at < start:
                        yield Span(Kind.DATA, at, start - at)
                    yield Span(Kind.ZERO, start, stop - start)
                    at = stop
        if at < end:
            yield Span(Kind.DATA, at, end - at)

    async def _pieces(self) -> AsyncIterator[_Piece]:
        number = 0
        for source in self._sources:
            spans = self._in_whole_clusters(source) if self._plan.compress else self._spans(source)
            async for span in spans:
                if span.kind is Kind.ZERO and self._plan.sparse != 0 and self._plan.target_is_zero:
                    continue
                step = self._step_for(span)
                done = 0
                while done < span.length:
                    goal = source.shift + span.guest_offset + done
                    length = min(step - goal % step, span.length - done)
                    yield _Piece(number, source, cut(span, done, length))
                    number += 1
                    done += length

    def _step_for(self, span: Span) -> int:
        if span.kind is Kind.ZERO and self._plan.sparse != 0:
            return self._target.node.allocation_unit or MEMORY_PIECE if self._compares else ZERO_PIECE
        if self._plan.compress:
            return align_up(min(self._step, MEMORY_PIECE), self._target.node.allocation_unit)
        return self._step if self._is_for_kernel(span) else min(self._step, MEMORY_PIECE)

    def _is_for_kernel(self, span: Span) -> bool:
        plan = self._plan
        return (
            span.kind is Kind.DATA
            and not plan.sparse
            and not plan.salvage
            and not plan.compress
            and not self._compares
            and self._target_in_kernel
            and has_descriptor(span.leaf)
        )

    @property
    def _compares(self) -> bool:
        """Whether what is in the target already is found out by reading it."""
        return self._plan.differences and self._plan.sparse != 0 and not self._plan.offload

    async def _work(self, pieces: AsyncIterator[_Piece], lock: asyncio.Lock) -> None:
        while True:
            async with lock:
                piece = await anext(pieces, None)
                if piece is None:
                    return
                goal = piece.source.shift + piece.span.guest_offset
                self._under_way[piece.number] = goal
                self._handed_out = goal + piece.span.length
            if self._limit is not None and self._is_work(piece.span):
                await self._limit.take(piece.span.length)
            await self._copy(piece)
            del self._under_way[piece.number]
            if self._progress is not None and self._is_work(piece.span):
                self._progress.add(piece.span.length)

    async def _copy(self, piece: _Piece) -> None:
        span = piece.span
        goal = piece.source.shift + span.guest_offset
        if span.kind is Kind.ZERO:
            is_needed = not self._compares or await self._shows_data(goal, span.length)
            async with self._turns.turn(piece.number):
                if is_needed:
                    await self._write_zero_span(goal, span.length)
        elif self._is_for_kernel(span):
            await self._move(piece, goal)
        else:
            buffer = bytearray(span.length)
            await self._read(piece.source, span, memoryview(buffer))
            await self._mover.saw(goal, buffer)
            there = await self._target.read(goal, span.length) if self._compares else None
            async with self._turns.turn(piece.number):
                if there is None:
                    await self._write(goal, buffer)
                else:
                    await self._write_differences(goal, buffer, there)

    async def _move(self, piece: _Piece, goal: int) -> None:
        span, target = piece.span, self._target.node
        runs = [(0, span.length)]
        if self._zero_unit:
            runs = await self._mover.worth_space(span, target, goal)
        async with self._turns.turn(piece.number) as pass_on:
            for start, end in runs:
                part = cut(span, start, end - start)
                placed = pass_on if end == runs[-1][1] else None
                await self._mover.move(part, target, goal + start, zero_unit=self._zero_unit, placed=placed)

    async def _write_zero_span(self, goal: int, length: int) -> None:
        if self._plan.sparse == 0:
            await self._target.write(goal, memoryview(_ZEROS)[:length])
        else:
            await self._target.write_zeroes(goal, length, unmap=True)

    async def _shows_data(self, offset: int, length: int) -> bool:
        """Tell whether a range of the target is not all zeros."""
        for done in range(0, length, MEMORY_PIECE):
            data = await self._target.read(offset + done, min(MEMORY_PIECE, length - done))
            if not _ZEROS.startswith(data):
                return True
        return False

    async def _write_differences(self, goal: int, data: bytearray, there: bytes) -> None:
        if _ZEROS.startswith(data) and not _ZEROS.startswith(there):
            await self._target.write_zeroes(goal, len(data), unmap=True)
            return
        for start, end in differing_runs(data, there, DIFFERENCE_UNIT):
            await self._write(goal + start, data[start:end])

    async def _read(self, source: Source, span: Span, buffer: memoryview) -> None:
        if source.walk is not None and span.leaf is not None:
            await span.leaf.read_into(span.leaf_offset, buffer)
            return
        offset = span.guest_offset
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
                        self._salvaged(Loss.READ, source, offset + start, len(sector), error)

    async def _write(self, goal: int, data: bytearray) -> None:
        unit = self._plan.sparse or self._zero_unit
        if unit and self._plan.compress:
            unit = align_up(unit, self._target.node.allocation_unit)
        if not unit:
            await self._target.write(goal, data)
            return
        done = 0
        for start, end in [*data_runs(data, len(data), unit), (len(data), len(data))]:
            if start > done and not self._plan.target_is_zero:
                await self._target.write_zeroes(goal + done, start - done, unmap=True)
            if end > start:
                await self._target.write(goal + start, memoryview(data)[start:end])
            done = end


class _Turnstile:
    """Lets numbered tasks through in the order of their numbers, `OVERLAP` at a time.

    The next comes when the one before has passed its turn on, which it does at its end
    or, if others may go on beside it, before.
    """

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._inside = 0
        self._is_open = True
        self._waiting: dict[int, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def turn(self, number: int) -> AsyncGenerator[Callable[[], None]]:
        """Hold the turn of `number`; yield how it is passed on before the block ends, well."""
        if not self._ordered:
            yield lambda: None
            return
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._let_in()
        if not future.done():
            await future
        has_passed = False

        def pass_on() -> None:
            nonlocal has_passed
            if not has_passed:
                has_passed = self._is_open = True
                self._let_in()

        yield pass_on
        self._inside -= 1
        pass_on()
        self._let_in()

    def _let_in(self) -> None:
        waiting = self._waiting
        if self._is_open and self._inside < OVERLAP and self._next in waiting:
            future = waiting.pop(self._next)
            self._is_open = False
            self._next += 1
            self._inside += 1
            if not future.done():
                future.set_result(None)
