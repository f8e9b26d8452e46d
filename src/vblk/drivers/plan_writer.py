"""Writing to an image by plans: what the writing sides of formats share.

Owns: carrying out plans. It takes the gates of clusters or blocks, makes the room
that a plan asks for, does its copies and zeros, lets the caller bring the payload,
and ends the plan. What is to be done is decided by a format's pure planner, when
it becomes durable by its session; its writer, a subclass, knows both.

Ordering rules:
- gate, session, plan's fills, payload, commit; an exception or a cancellation
  aborts the plan and gives the gate back.
- The file is extended before anything is mapped to the extension.

Concurrency: clusters and blocks are shared by overwrites and belong to one change
that gives or takes space. Reads never wait for a gate: the space that they may be
looking at is not used again before they have finished.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Generic, Protocol, TypeVar

from vblk.codec.ranges import RangeSet
from vblk.errors import BlockError, NoSpace, OutOfRange, Unsupported
from vblk.extent import Missing
from vblk.formats.edits import EditedPages, Range
from vblk.formats.plan import Need, NeedsRoom, Plan
from vblk.formats.space import Space
from vblk.graph.mapper import Mapper
from vblk.graph.node import Buffer, Node, Span
from vblk.runtime.fan_out import fan_out
from vblk.runtime.range_lock import RangeGuard, RangeLock
from vblk.units import MIB, align_down, align_up

UNITS_AT_ONCE = 256
BYTES_AT_ONCE = 64 * MIB
"""The most clusters or blocks, and bytes, that one plan of payload covers, or else one of them."""

PIECES_AT_ONCE = 8
"""How many pieces of one plan are written side by side."""

COPY_MAX = MIB
"""The most bytes that are copied at once."""

AnyPlan = TypeVar("AnyPlan", bound=Plan)


class Planning(Protocol[AnyPlan]):
    """A format's planner."""

    @property
    def space(self) -> Space:
        """The free space."""
        ...

    def plan_write(self, guest_offset: int, length: int) -> AnyPlan | Missing | Need:
        """Plan where `length` bytes go that a caller will bring."""
        ...

    def commit(self, plan: AnyPlan) -> None:
        """Edit the tables: the plan's bytes are written, if not yet durable."""
        ...

    def abort(self, plan: AnyPlan, *, touched: bool) -> None:
        """Give everything back. With `touched` bytes may have been written to the plan's space."""
        ...


AnyNode = TypeVar("AnyNode", bound=Mapper)
AnyPlanner = TypeVar("AnyPlanner", bound=Planning[Any])


class PlanWriter(ABC, Generic[AnyNode, AnyPlanner, AnyPlan]):
    """The writing side of one node.

    Args:
        node: The node, whose image may be written.
        edits: The pages of its tables.
    """

    def __init__(self, node: AnyNode, edits: EditedPages) -> None:
        self.node = node
        self._file = node.file
        self._edits = edits
        self._gates = RangeLock()
        self._planner: AnyPlanner | None = None
        self._preparing = asyncio.Lock()
        self._extending = asyncio.Lock()
        self._wanted = 0
        """Bytes of room that all who wait for some will take."""

    # What a format says

    @property
    @abstractmethod
    def _unit(self) -> int:
        """Bytes of a cluster or block."""

    @abstractmethod
    def _pieces(self, offset: int, length: int) -> Generator[tuple[int, int]]:
        """Divide a guest range into what one plan of payload takes."""

    @abstractmethod
    def _check_healthy(self) -> None:
        """Raise NodeFailed once anything has failed that poisons."""

    @abstractmethod
    async def _begin(self) -> None:
        """Return when the disk may be changed."""

    @abstractmethod
    async def flush(self) -> None:
        """Make everything durable that has returned."""

    @abstractmethod
    async def write_zeroes(self, offset: int, length: int, *, unmap: bool, no_fallback: bool) -> None:
        """Make a range read as zeros; see `Node.write_zeroes`."""

    @abstractmethod
    async def discard(self, offset: int, length: int) -> None:
        """Forget a range; see `Node.discard`."""

    @abstractmethod
    async def settle(self) -> None:
        """Make everything durable, and the file as it is to be."""

    @abstractmethod
    async def close(self) -> None:
        """End the session and cut the file behind what is used. Idempotent."""

    @abstractmethod
    async def _survey(self) -> AnyPlanner:
        """Look through the whole image, for its planner."""

    @abstractmethod
    async def _make(self, planner: AnyPlanner, need: Need) -> None:
        """Make a table that is lacking: a change of its own, sound without what asked for it."""

    @abstractmethod
    def carried_out(self, planner: AnyPlanner, plan: AnyPlan) -> AbstractAsyncContextManager[None]:
        """Open the way for a plan, and commit it when the block ends well."""

    def _needs_gate(self, planner: AnyPlanner, offset: int) -> bool:
        """Tell whether a change is better asked for with the gate held exclusively at once."""
        return False

    async def _bring(self, file_offset: int, view: memoryview) -> None:
        await self._file.write(file_offset, view)

    def _extended(self, planner: AnyPlanner, length: int) -> None:
        """Take note that the file was made longer."""
        planner.space.extended(length)

    # What the node asks for

    def follow_file(self, file: Node) -> None:
        """Go on in another node that stores the same image; nothing is in flight."""
        self._file = file

    @contextmanager
    def reading(self) -> Generator[None]:
        """Keep whatever is mapped now from being used for something else while the block runs."""
        if self._planner is None:
            yield
            return
        space = self._planner.space
        readers = space.readers
        readers.active += 1
        try:
            yield
        finally:
            readers.active -= 1
            if not readers.active:
                space.promote()

    async def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at a guest offset."""
        view = memoryview(data)
        for start, length in self._pieces(offset, len(view)):
            await self._write_piece(start, view[start - offset : start - offset + length])

    async def _write_piece(self, offset: int, view: memoryview) -> None:
        async with self._planned(
            offset, len(view), lambda planner: planner.plan_write(offset, len(view))
        ) as plan:
            pieces = plan.payload
            if len(pieces) == 1:
                await self._bring(pieces[0].file_offset, view)
                return
            await fan_out(
                (
                    self._bring(
                        piece.file_offset,
                        view[piece.guest_offset - offset : piece.guest_offset - offset + piece.length],
                    )
                    for piece in pieces
                ),
                PIECES_AT_ONCE,
            )

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Make room for a range and yield where its bytes go; see `Node.place`."""
        async with (
            self._planned(offset, length, lambda planner: planner.plan_write(offset, length)) as plan,
            AsyncExitStack() as below,
        ):
            spans: list[Span] = []
            stale = RangeSet()
            for start, count in plan.stale:
                stale.add(start, start + count)
            for piece in plan.payload:
                shift = piece.guest_offset - piece.file_offset
                place = self._file.place(piece.file_offset, piece.length)
                for span in await below.enter_async_context(place):
                    start = span.guest_offset
                    span.present = not any(stale.within(start, start + span.length))
                    span.guest_offset += shift
                    spans.append(span)
            yield spans

    # Plans

    @asynccontextmanager
    async def _planned(
        self,
        offset: int,
        length: int,
        make: Callable[[AnyPlanner], AnyPlan | Missing | Need],
        *,
        unmap: bool = False,
        no_fallback: bool = False,
    ) -> AsyncGenerator[AnyPlan, None]:
        """Plan, do what must come before the payload, and commit when the block ends well."""
        planner = await self.prepared()
        guard, plan = await self._gated(planner, offset, length, make)
        try:
            if plan.changes_nothing:
                yield plan
                return
            async with self.carried_out(planner, plan):
                await self.fill(plan, unmap=unmap, no_fallback=no_fallback)
                yield plan
        finally:
            guard.release()

    @asynccontextmanager
    async def _carry_out(
        self, planner: AnyPlanner, plan: AnyPlan, pages: int, begin: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[None, None]:
        """Carry out a plan that edits at most so many pages, after `begin`; see `carried_out`."""
        reserved = 0
        touched = False
        try:
            while not self._edits.try_reserve(pages):
                await self.flush()
            reserved = pages
            await begin()
            touched = True
            yield
            self._check_healthy()
            planner.commit(plan)
        except BaseException:
            planner.abort(plan, touched=touched)
            raise
        finally:
            self._edits.unreserve(reserved)

    async def _gated(
        self,
        planner: AnyPlanner,
        offset: int,
        length: int,
        make: Callable[[AnyPlanner], AnyPlan | Missing | Need],
    ) -> tuple[RangeGuard, AnyPlan]:
        """Return a plan and the gate that it needs, held."""
        start = align_down(offset, self._unit)
        span = align_up(offset + length, self._unit) - start
        exclusive = self._needs_gate(planner, offset)
        while True:
            guard = self._gates.exclusive(start, span) if exclusive else self._gates.shared(start, span)
            await guard.acquire()
            try:
                self._check_range(offset, length)
                plan = await self.answered(planner, make)
            except BaseException:
                guard.release()
                raise
            if exclusive or not plan.exclusive:
                return guard, plan
            planner.abort(plan, touched=False)
            guard.release()
            exclusive = True

    def _check_range(self, offset: int, length: int) -> None:
        """Refuse what a resize has cut off while it was waited for."""
        if offset + length > self.node.size:
            raise OutOfRange(
                f"range of {length} bytes at {offset} does not lie within the disk any more",
                filename=self.node.filename,
                length=length,
            )

    async def answered(
        self, planner: AnyPlanner, make: Callable[[AnyPlanner], AnyPlan | Missing | Need]
    ) -> AnyPlan:
        """Ask for a plan until nothing that it needs is missing."""
        with ExitStack() as pins:
            while True:
                answer = make(planner)
                if isinstance(answer, Missing):
                    await self.node.load(answer, pins)
                elif isinstance(answer, NeedsRoom):
                    await self._extend(planner, answer)
                elif isinstance(answer, Need):
                    await self._make(planner, answer)
                else:
                    return answer

    async def fill(self, plan: AnyPlan, *, unmap: bool = False, no_fallback: bool = False) -> None:
        """Do a plan's copies and zeros."""
        for piece in plan.copies:
            for done in range(0, piece.length, COPY_MAX):
                data = bytearray(min(COPY_MAX, piece.length - done))
                await self.node.read_into(piece.guest_offset + done, memoryview(data))
                await self._file.write(piece.file_offset + done, data)
        for file_offset, length in joined(plan.zeros):
            await self._file.write_zeroes(file_offset, length, unmap=unmap, no_fallback=no_fallback)

    # Space

    async def prepared(self) -> AnyPlanner:
        """Return the planner; before the first change look through the whole image."""
        self._check_healthy()
        if self._planner is None:
            async with self._preparing:
                if self._planner is None:
                    self._planner = await self._survey()
        return self._planner

    async def _extend(self, planner: AnyPlanner, need: NeedsRoom) -> None:
        """Make the file longer, unless somebody has done so meanwhile."""
        await self._begin()
        wish = max(need.length, need.wish)
        self._wanted += wish
        try:
            async with self._extending:
                if planner.space.file_size == need.file_size:
                    await self._lengthen(planner, need)
        finally:
            self._wanted -= wish

    async def _lengthen(self, planner: AnyPlanner, need: NeedsRoom) -> None:
        """Make the file longer, for all who want room now."""
        space = planner.space
        length = space.extension(self._wanted)
        try:
            await self._file.resize(length)
        except BlockError:
            length = space.least_extension(need.length)
            await lengthen(self._file, length)
        self._extended(planner, length)

    async def _punch(self, ranges: list[Range]) -> None:
        """Give the bytes of space that nothing names any more back to the host, as far as it takes them."""
        try:
            for file_offset, length in joined(ranges):
                await self._file.discard(file_offset, length)
        except BlockError as error:
            self.node.warnings.append(f"space could not be given back to the host: {error}")


async def lengthen(file: Node, length: int) -> None:
    """Make the file of an image longer.

    Raises:
        NoSpace: It stays as long as it is, as a window of fixed size does: there is no room then.
    """
    try:
        await file.resize(length)
    except Unsupported as error:
        raise NoSpace(f"no room is left: {error.message}", filename=error.filename) from error


def payload_step(unit: int) -> int:
    """Return the most bytes that one plan of payload covers."""
    return max(unit, min(BYTES_AT_ONCE, UNITS_AT_ONCE * unit))


def pieces(offset: int, length: int, step: int, unit: int) -> Generator[tuple[int, int]]:
    """Divide a range into pieces of at most `step` bytes that end at multiples of `unit`."""
    end = offset + length
    while offset < end:
        count = min(end, align_down(offset + step, unit)) - offset
        yield offset, count
        offset += count


def joined(ranges: list[Range]) -> list[Range]:
    """Join ranges that follow each other."""
    whole = RangeSet()
    for start, length in ranges:
        whole.add(start, start + length)
    return [(start, end - start) for start, end in whole.ranges()]
