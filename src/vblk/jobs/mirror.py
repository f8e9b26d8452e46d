"""Mirroring a disk that is in use to another node, and moving its users there.

Owns: the two phases. First everything is copied as fast as the data plane can,
until the target has caught up for the first time: the job is ready. Then it is
kept in step until the user completes or cancels. The target is a black box: any
node. Which nodes these are, and who closes them, is the monitor's business.

Ordering rule: the mark of a range is cleared before the range is read, and set by
a change when that has ended; so what a copy may have missed is marked. A range is
copied by one worker at a time. The end is under a drain: nothing is marked, nobody
writes, the target is flushed; only then users are led to it.
"""

import asyncio
import enum
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar, Final, Unpack

from vblk.errors import BlockError, JobError
from vblk.extent import Kind
from vblk.graph.dirty_bitmap import DirtyBitmap, granularity_for
from vblk.graph.edge import IDLE
from vblk.graph.edges import Rewiring, reachable
from vblk.graph.handle import Handle
from vblk.graph.mapper import Mapper
from vblk.graph.node import Leaf, Node, Span, coalesce
from vblk.graph.plane import Mover
from vblk.graph.recording import add_bitmap, remove_bitmap
from vblk.graph.registry import Graph
from vblk.jobs.block_job import BlockJob, OnError
from vblk.jobs.job import Life, woken
from vblk.jobs.states import Status, Verb, require_accepted
from vblk.jobs.walk import walk
from vblk.runtime.range_lock import RangeLock
from vblk.units import MIB, align_down, align_up, is_power_of_two

WORKERS: Final = 8
PIECE: Final = 16 * MIB
"""The most bytes that one worker copies in one go."""
BUFFER: Final = MIB
"""The most of it that passes through memory at a time."""
HELD_MOST: Final = 32 * MIB
"""For so many bytes the disk's users may be held back, where copying does not get ahead of them."""
PAUSE: Final = 0.1
"""So many seconds a job that is in step waits before it looks for changes again."""
GRANULARITY_LEAST: Final = 512
GRANULARITY_MOST: Final = 64 * MIB


class Sync(enum.Enum):
    """What is copied of the disk as it is at the start."""

    FULL = "full"
    TOP = "top"
    """What the top image holds itself."""
    NONE = "none"
    """Nothing: only what changes from now on."""


class End(enum.Enum):
    """How a job that is ready ends when the user says so."""

    PIVOT = "pivot"
    """The disk's users go to the target."""
    LEAVE = "leave"
    """They stay; the target is what the disk was at this instant."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a disk is mirrored; sizes in bytes.

    `granularity` 0 takes the format's clusters for it. `unmap`: what reads as
    zeros takes no space in the target. `target_is_zero`: the target reads as
    zeros already. `converge`: after so many seconds the disk's users wait while the
    rest is copied, however much it is.
    """

    sync: Sync = Sync.FULL
    granularity: int = 0
    on_source_error: OnError = OnError.REPORT
    on_target_error: OnError = OnError.REPORT
    unmap: bool = True
    target_is_zero: bool = False
    converge: float | None = None


class MirrorJob(BlockJob):
    """One mirror of a disk to a target that is at least as large.

    Args:
        id: The job's.
        graph: The graph of both.
        source: A hold on the disk, for reading; the job lets go of it at its end.
        target: A hold on the target, for writing, likewise.
        plan: How.
        replaces: Whose users a completed job leads to the target; by default the source's.
        life: What every job has: listener, clock, speed and so on.
    """

    type: ClassVar[str] = "mirror"

    def __init__(
        self,
        id: str,
        graph: Graph,
        source: Handle,
        target: Handle,
        plan: Plan,
        *,
        replaces: Node | None = None,
        **life: Unpack[Life],
    ) -> None:
        granularity = plan.granularity or granularity_for(target.node.allocation_unit)
        if not GRANULARITY_LEAST <= granularity <= GRANULARITY_MOST:
            raise JobError("Parameter 'granularity' expects a value in range [512B, 64MB]")
        if not is_power_of_two(granularity):
            raise JobError("Parameter 'granularity' expects a power of 2")
        if target.size < source.size:
            raise JobError(f"the target has {target.size} bytes, less than the {source.size} of the source")
        super().__init__(id, **life)
        self._granularity = granularity
        self._graph = graph
        self._source = source
        self._target = target
        self._plan = plan
        self._replaces = replaces or source.node
        self._ending: End | None = None
        self._kicked = asyncio.Event()
        self._locks = RangeLock()
        self._mover = Mover(graph.engine)
        self._deadline: float | None = None
        self._held = False
        """Whether the users wait, and the job's own requests with them: it goes past the handles then."""
        self._stumbled = False
        """Whether something failed since the last rest."""
        self._drain = AsyncExitStack()
        self._name = f"#mirror of {id}"
        self._virgin = DirtyBitmap("virgin", source.size, self._granularity)
        """Where the target still reads as zeros, as it did at the start."""
        if plan.target_is_zero:
            self._virgin.set(0, source.size)
        self._cursor = 0
        self._flying = 0
        """Bytes that are being copied."""

    def complete(self) -> None:
        """Let the job end, and its users go to the target, as soon as both are the same."""
        require_accepted(self.id, self.status, Verb.COMPLETE)
        if self._ending is not None:
            raise JobError(f"The active block job '{self.id}' cannot be completed")
        self._end(End.PIVOT)

    def ends_by_itself(self, *, force: bool) -> bool:
        """Let a job that is ready end with the target as a copy of the disk at one instant."""
        if force or self.status not in (Status.READY, Status.STANDBY):
            return False
        self._end(End.LEAVE)
        return True

    def _end(self, how: End) -> None:
        self._ending = how
        self._kicked.set()

    async def run(self) -> None:
        """Copy, get ready, and keep in step until the end; the disk is drained then."""
        why = f"block device is in use by block job: {self.type}"
        with self._graph.pinned(self._source.node, why):
            await self._run()

    async def _run(self) -> None:
        source = self._source
        bitmap = await add_bitmap(self._graph, source.node, self._name, granularity=self._granularity)
        bitmap.busy = True
        if self._plan.converge is not None:
            self._deadline = self.clock.now() + self._plan.converge
        await self._mark_what_is_there(bitmap)
        while True:
            await self._catch_up(bitmap)
            if self._ending is None and self.status is Status.READY:
                await self._rest()
            elif await self._is_in_step(bitmap):
                if self._ending is not None:
                    return
                await self._let_users_go_on()
                self.became_ready()
            else:
                await self._let_users_go_on()
                await self._recover()

    async def _mark_what_is_there(self, bitmap: DirtyBitmap) -> None:
        source = self._source
        if self._plan.sync is Sync.FULL:
            bitmap.set(0, source.size)
        elif self._plan.sync is Sync.TOP:
            async for span in walk(source, 0, source.size, refined=False):
                await self.pause_point()
                if span.depth == 0 and span.present:
                    bitmap.set(span.guest_offset, span.length)
        self._account(bitmap)

    async def _rest(self) -> None:
        """Wait for the user, for a moment at most."""
        await self.pause_point()
        self._kicked.clear()
        if self._ending is None:
            await woken(self._kicked, self.clock.sleep(PAUSE))

    async def _recover(self) -> None:
        """After failures that are to be ignored: what failed is tried again, but not at once."""
        if self._stumbled:
            self._stumbled = False
            await self.clock.sleep(PAUSE)

    async def _catch_up(self, bitmap: DirtyBitmap) -> None:
        """Copy what is marked until nothing is, or so little that the users may wait for it.

        They have to where they write as fast as that goes, and from the deadline of
        `Plan.converge` on they wait for any amount.
        """
        before = 0
        while left := bitmap.count:
            hurry = self._deadline is not None and self.clock.now() >= self._deadline
            if hurry or (left <= HELD_MOST and left * 2 > before > 0):
                return
            before = left
            await self._sweep(bitmap)
            await self.pause_point()
            await self._recover()

    async def _is_in_step(self, bitmap: DirtyBitmap) -> bool:
        """Hold the users back, copy the rest, and tell whether both are the same, durably."""
        await self._drain.enter_async_context(self._graph.drained(self._source.node))
        self._held = True
        await self._sweep(bitmap)
        if bitmap.count:
            return False
        await self._target.node.flush()
        return True

    async def _let_users_go_on(self) -> None:
        self._held = False
        await self._drain.aclose()
        await self.pause_point()

    async def _sweep(self, bitmap: DirtyBitmap) -> None:
        """Go over the disk once, and copy what is marked."""
        self._cursor = 0
        crowd = 1 if self.speed else WORKERS
        tasks = [asyncio.ensure_future(self._copy_pieces(bitmap)) for _ in range(crowd)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _copy_pieces(self, bitmap: DirtyBitmap) -> None:
        while not self.paused and (piece := self._next(bitmap)) is not None:
            offset, length = piece
            self._flying += length
            try:
                await self.pace(length)
                async with self._locks.exclusive(offset, length):
                    await self._copy(bitmap, offset, length)
            except BaseException:
                bitmap.set(offset, length)
                raise
            finally:
                self._flying -= length
                self._account(bitmap)

    def _next(self, bitmap: DirtyBitmap) -> tuple[int, int] | None:
        """Take the next marked range: its marks are cleared, so that nobody else takes it."""
        size = self._source.size
        step = PIECE if not self.speed else max(self._granularity, min(PIECE, self.speed // 4))
        step = align_up(step, self._granularity)
        for offset, length, dirty in bitmap.ranges(self._cursor, size - self._cursor):
            if dirty:
                piece = min(length, step)
                bitmap.reset(offset, piece)
                self._cursor = offset + piece
                return offset, piece
        self._cursor = size
        return None

    async def _copy(self, bitmap: DirtyBitmap, offset: int, length: int) -> None:
        try:
            async with AsyncExitStack() as stack:
                if not self._held:
                    await stack.enter_async_context(self._source.traffic)
                    await stack.enter_async_context(self._target.traffic)
                for span in coalesce(await self._source.node.allocation(offset, length)):
                    await self._copy_span(span)
        except BlockError as error:
            bitmap.set(offset, length)
            # The kernel copies both sides in one call, so the file says whose failure it was.
            reading = error.filename in {node.filename for node in reachable(self._source.node)}
            policy = self._plan.on_source_error if reading else self._plan.on_target_error
            self._stumbled = True
            self.failed(error, policy, reading=reading)
        else:
            self.current += length

    async def _copy_span(self, span: Span) -> None:
        offset, length = span.guest_offset, span.length
        if span.kind is Kind.ZERO:
            await self._zero(offset, length)
        elif self._in_kernel(span):
            await self._mover.move(span, self._target.node, offset)
        else:
            for done in range(0, length, BUFFER):
                await self._copy_by_memory(offset + done, min(BUFFER, length - done))
        first = align_down(offset, self._granularity)
        self._virgin.reset(first, align_up(offset + length, self._granularity) - first)

    async def _zero(self, offset: int, length: int) -> None:
        for start, count, untouched in self._virgin.ranges(offset, length):
            if not untouched:
                await self._target.node.write_zeroes(start, count, unmap=self._plan.unmap)

    async def _copy_by_memory(self, offset: int, length: int) -> None:
        buffer = bytearray(length)
        await self._source.node.read_into(offset, memoryview(buffer))
        await self._target.node.write(offset, buffer)

    def _in_kernel(self, span: Span) -> bool:
        node: Node = self._target.node
        while isinstance(node, Mapper):
            node = node.file
        return all(isinstance(each, Leaf) and each.descriptor() is not None for each in (span.leaf, node))

    def _account(self, bitmap: DirtyBitmap) -> None:
        """Say how much is done, and how much it would be in all if nobody wrote any more."""
        size, left = self._source.size, bitmap.count
        if size and bitmap.is_dirty(size - 1):
            left -= -size % self._granularity
        self.total = self.current + self._flying + left

    async def commit(self) -> None:
        """Lead the users to the target."""
        if self._ending is not End.PIVOT:
            return
        graph, target = self._graph, self._target
        own = (self._source.edge, target.edge)
        users = [edge for edge in graph.users(self._replaces) if edge not in own]
        graph.rewire(Rewiring(access={target.edge: IDLE}))
        await graph.replace(self._replaces, target.node, users=users)

    async def clean(self) -> None:
        """Let go of both nodes."""
        await self._let_go()
        await self._drain.aclose()

    async def _let_go(self) -> None:
        source = self._source
        if not source.closed:
            bitmap = source.node.bitmaps.get(self._name)
            if bitmap is not None:
                bitmap.busy = False
                remove_bitmap(source.node, self._name)
        for handle in (source, self._target):
            await self._graph.release(handle)
