"""Mirroring a disk that is in use to another node, and moving its users there.

Owns: the two phases. First everything is copied as fast as the data plane can,
until the target has caught up for the first time: the job is ready. Then it is
kept in step until the user completes or cancels. The target is a black box: any
node. Which nodes these are, and who closes them, is the monitor's business.

Ordering rule: the mark of a range is cleared before the range is read, and set by
a change when that has ended; so what a copy may have missed is marked. A range is
copied by one worker at a time. The end is under a drain: nothing is marked, nobody
writes, the target is flushed; only then users are led to it. Requests of the job are
counted on the source before they wait for anything; a drain of the target waits for
those too.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from typing import ClassVar, Final, Unpack

from vblk.errors import BlockError, JobError
from vblk.filters.job_top import take_job_top
from vblk.graph.dirty_bitmap import DirtyBitmap, granularity_for
from vblk.graph.edge import IDLE
from vblk.graph.edges import Rewiring, reachable
from vblk.graph.following import follow, leave
from vblk.graph.handle import Handle
from vblk.graph.node import Node, Span, coalesce
from vblk.graph.recording import add_bitmap, remove_bitmap
from vblk.graph.registry import Graph
from vblk.jobs.job import Life, woken
from vblk.jobs.mirror_ledger import NoLedger
from vblk.jobs.mirror_plan import BUFFER, WORKERS, CopyMode, End, Plan, Sync, check_deadline
from vblk.jobs.mirror_progress import MirrorProgress
from vblk.jobs.mirror_target import MirrorTarget
from vblk.jobs.states import Status, Verb, require_accepted
from vblk.jobs.walk import walk
from vblk.jobs.write_blocking import WriteBlocking
from vblk.runtime.fan_out import fan_out
from vblk.runtime.range_lock import RangeLock
from vblk.units import MIB, align_up

PIECE: Final = 16 * MIB
"""The most bytes that one worker copies in one go."""
PIECE_BESIDE_USERS: Final = MIB
"""The same where users who write to the range wait for it."""
HELD_MOST: Final = 32 * MIB
"""For so many bytes the disk's users may be held back, where copying does not get ahead of them."""
PAUSE: Final = 0.1
"""So many seconds a job that is in step waits before it looks for changes again."""


class MirrorJob(MirrorProgress):
    """One mirror of a disk to a target.

    Args:
        id: The job's.
        graph: The graph of both.
        source: A hold on the disk, for reading; the job lets go of it at its end.
        target: A hold on the target, for writing, likewise.
        plan: How.
        replaces: Whose users a completed job leads to the target; by default the filter's or the source's.
        filter: A node over the source that goes when the job ends.
        ledger: What keeps, beside the target, how far the job is, for one that goes on after it died.
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
        filter: Node | None = None,
        ledger: NoLedger | None = None,
        **life: Unpack[Life],
    ) -> None:
        plan.check()
        granularity = plan.granularity or granularity_for(target.node.allocation_unit)
        goal = MirrorTarget(graph.bulk_engine, target.node, source.size, granularity, plan)
        super().__init__(id, goal, ledger or NoLedger(), plan.copy_mode, **life)
        self._granularity = granularity
        self._graph = graph
        self._source = source
        self._target = target
        self._plan = plan
        self._filter = filter
        self._replaces = replaces or filter or source.node
        self._ending: End | None = None
        self._kicked = asyncio.Event()
        self._locks = RangeLock()
        self._deadline: float | None = None
        self._has_told_of_deadline = False
        self._stumbled = False
        """Whether something failed since the last rest."""
        self._drain = AsyncExitStack()
        self._bonds = ExitStack()
        self._name = f"#mirror of {id}"
        self._write_blocking: WriteBlocking | None = None
        self._breakage = asyncio.Event()
        """Set when a failure in the course of a user's request ends the job."""
        self._broken: BlockError | None = None
        self._crowd = min(WORKERS, max(1, max(plan.buffer, granularity) // BUFFER))
        self._cursor = 0

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

    async def change(self, copy_mode: CopyMode | None, converge: float | None) -> None:
        """Take on another copy mode or deadline, in seconds from now.

        Raises:
            JobError: Not in this state, or no deadline.
        """
        require_accepted(self.id, self.status, Verb.CHANGE)
        check_deadline(converge)
        self._set_deadline(converge)
        if copy_mode is not None:
            self._copy_mode = copy_mode
            await self._take_on_copy_mode()
        self._kicked.set()

    def _set_deadline(self, converge: float | None) -> None:
        if converge is not None:
            self._deadline = self.clock.now() + converge
            self._has_told_of_deadline = False

    async def _take_on_copy_mode(self) -> None:
        """Begin or end to follow the source, once nothing is in flight there."""
        if self._bitmap is None or self._follows is (self._write_blocking is not None):
            return
        node = self._source.node
        if self._write_blocking is not None:
            self._write_blocking.abandon()
        async with self._graph.drained(node):
            self._follow_or_leave()

    def _follow_or_leave(self) -> None:
        """Do what the copy mode says, unless the job has ended meanwhile, or somebody was faster."""
        if self._bitmap is None or self._follows is (self._write_blocking is not None):
            return
        node = self._source.node
        if self._follows:
            self._write_blocking = WriteBlocking(self, node, self._goal, self._bitmap, self._locks)
            follow(node, self._write_blocking)
        else:
            self._write_blocking = None
            leave(node)

    @property
    def _follows(self) -> bool:
        return self._copy_mode is CopyMode.WRITE_BLOCKING

    @property
    def passes_on(self) -> bool:
        """Whether what users change goes to the target at once, in copy mode `write-blocking`."""
        return self.at_work and not (self.paused or self._stumbled or self._broken)

    def passed_on(self, length: int) -> None:
        """Count what went to the target so."""
        self.current += length
        self.total += length

    def stumbled(self, error: BlockError) -> None:
        """Deal with a failure in the course of a user's request."""
        if not self.passes_on:
            return
        try:
            self.stumble(error)
        except BlockError as fatal:
            self._broken = fatal
            self._breakage.set()
        self._kicked.set()

    def stumble(self, error: BlockError) -> None:
        """Deal with a failure in the course of the job's own work.

        Raises:
            BlockError: It ends the job.
        """
        reading = self._is_reading(error)
        policy = self._plan.on_source_error if reading else self._plan.on_target_error
        self._stumbled = True
        self.failed(error, policy, reading=reading)

    def _is_reading(self, error: BlockError) -> bool:
        """Tell by whose file it is whether a failure is one of reading: the kernel copies in one call."""
        return error.filename in {node.filename for node in reachable(self._source.node)}

    async def spans(self, offset: int, length: int) -> list[Span]:
        """Return what of a range has to be brought to the target."""
        return coalesce(await self._source.node.allocation(offset, length))

    async def run(self) -> None:
        """Copy, get ready, and keep in step until the end; the disk is drained then."""
        why = f"block device is in use by block job: {self.type}"
        self._bonds.enter_context(self._graph.pinned(self._source.node, why))
        work = (self._run(), self._broke(), self._ledger.keep(self.clock))
        tasks = [asyncio.ensure_future(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await next(task for task in tasks if task.done())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _broke(self) -> None:
        await self._breakage.wait()
        assert self._broken is not None
        raise self._broken

    async def _run(self) -> None:
        source = self._source
        self._bonds.enter_context(self._graph.leading(source.node, self._target.node))
        bitmap = await self._begun_to_note()
        if not self._plan.target_is_zero:
            with suppress(BlockError):  # then it counts as data
                await self._goal.look()
        await self._prepare_target()
        await self._take_on_copy_mode()
        self._set_deadline(self._plan.converge)
        await self._mark_what_is_there(bitmap)
        self._ledger.all_is_marked()
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

    async def _begun_to_note(self) -> DirtyBitmap:
        """Note from now on what users change; go on by the ledger, if there is one."""
        await self._ledger.prepare()
        async with self._graph.drained(node := self._source.node):
            bitmap = await add_bitmap(self._graph, node, self._name, granularity=self._granularity)
            bitmap.busy = True
            self._bitmap = bitmap
            await self._ledger.start(bitmap)
            return bitmap

    async def _prepare_target(self) -> None:
        """Do what comes before the first change of the target."""
        excess = self._target.size - self._source.size
        if excess < 0 or (excess and not self._plan.target_may_be_larger):
            raise JobError("Source and target image have different sizes")

    async def _mark_what_is_there(self, bitmap: DirtyBitmap) -> None:
        """Mark what is to be copied of the disk as it is at the start."""
        source = self._source
        if self._plan.sync is Sync.FULL:
            self._mark(bitmap, 0, source.size)
        elif self._plan.sync is Sync.TOP:
            async for span in walk(source, 0, source.size, refined=False):
                await self.pause_point()
                if span.depth == 0 and span.present:
                    self._mark(bitmap, span.guest_offset, span.length)
        self._account(bitmap)

    def _mark(self, bitmap: DirtyBitmap, offset: int, length: int) -> None:
        """Mark what of a range is not on the target already, by the ledger."""
        undone = list(self._ledger.undone(offset, length))
        for start, count in undone:
            bitmap.set(start, count)
        if undone != [(offset, length)]:
            self._goal.owes(offset, length)

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
        while left := bitmap.count + self._goal.unproved:
            if self._is_overdue():
                self._tell_of_deadline(left)
                return
            if left <= HELD_MOST and left * 2 > before > 0:
                return
            before = left
            await self._sweep(bitmap)
            await self._goal.prove(self, bitmap)
            await self.pause_point()
            await self._recover()

    def _is_overdue(self) -> bool:
        keeps_in_step = self.status is Status.READY and self._ending is None
        return self._deadline is not None and self.clock.now() >= self._deadline and not keeps_in_step

    def _tell_of_deadline(self, left: int) -> None:
        """Say, once, that the users are held back for however much there is left."""
        if not self._has_told_of_deadline:
            self._has_told_of_deadline = True
            self.tell("BLOCK_JOB_CONVERGING", {"type": self.type, "device": self.id, "dirty-bytes": left})

    async def _is_in_step(self, bitmap: DirtyBitmap) -> bool:
        """Hold the users back, copy the rest, and tell whether both are the same, durably.

        What there is to flush is flushed first, so that they do not wait for much of it.
        """
        if not await self._flushed():
            return False
        await self._drain.enter_async_context(self._graph.drained(self._source.node))
        self.holds_users = True
        await self._sweep(bitmap)
        await self._goal.prove(self, bitmap)
        return not bitmap.count and not self._goal.unproved and await self._flushed()

    async def _flushed(self) -> bool:
        """Flush the target; tell whether that went well."""
        try:
            await self._target.node.flush()
        except BlockError as error:
            self.stumble(error)
            return False
        return True

    async def _let_users_go_on(self) -> None:
        self.holds_users = False
        await self._drain.aclose()
        await self.pause_point()

    async def _sweep(self, bitmap: DirtyBitmap) -> None:
        """Go over the disk once, and copy what is marked."""
        self._cursor = 0
        crowd = 1 if self.speed and not self.holds_users else self._crowd
        await fan_out((self._copy_pieces(bitmap) for _ in range(crowd)), crowd)

    @property
    def has_stopped(self) -> bool:
        """Whether nothing new is to begin now."""
        return self.paused or self._stumbled

    @property
    def piece(self) -> int:
        """The most bytes that are had at a time."""
        return PIECE if self._write_blocking is None or self.holds_users else PIECE_BESIDE_USERS

    @asynccontextmanager
    async def had(self, offset: int, length: int) -> AsyncGenerator[None]:
        """Have a range of the target alone."""
        async with self._leave(), self._locks.exclusive(offset, length):
            yield

    def still(self) -> AbstractAsyncContextManager[None]:
        """Hold the disk's users back; nothing is in flight."""
        return self._graph.drained(self._source.node)

    async def _copy_pieces(self, bitmap: DirtyBitmap) -> None:
        while not self.paused and (piece := self._next(bitmap)) is not None:
            offset, length = piece
            self._flying += length
            try:
                with self._ledger.copying(offset, length):
                    if not self.holds_users:
                        await self.pace(length)
                    await self._copy(bitmap, offset, length)
            except BaseException:
                self._give_back(bitmap, offset, length)
                raise
            finally:
                self._flying -= length
                self._account(bitmap)

    def _next(self, bitmap: DirtyBitmap) -> tuple[int, int] | None:
        """Take the next marked range: its marks are cleared, so that nobody else takes it."""
        size, step = self._source.size, self.piece
        if self.speed and not self.holds_users:
            step = min(step, self.speed // 4 + 1)
        step = align_up(step, self._granularity)
        for offset, length, dirty in bitmap.ranges(self._cursor, size - self._cursor):
            if dirty:
                piece = min(length, step)
                bitmap.reset(offset, piece)
                self._taken += piece
                self._cursor = offset + piece
                return offset, piece
        self._cursor = size
        return None

    async def _copy(self, bitmap: DirtyBitmap, offset: int, length: int) -> None:
        try:
            async with self.had(offset, length):
                if self._copied_at_once(offset, length):
                    await asyncio.sleep(0)  # the users' turn
                    self.current += length
                    return
                for span in await self.spans(offset, length):
                    await self._goal.copy(self._source.node, span)
        except BlockError as error:
            self._give_back(bitmap, offset, length)
            self.stumble(error)
        else:
            self.current += length

    def _copied_at_once(self, offset: int, length: int) -> bool:
        """Copy a short range without waiting, as what users changed mostly is, or return False."""
        return self._goal.try_copy(self._source.node, offset, length)

    def _give_back(self, bitmap: DirtyBitmap, offset: int, length: int) -> None:
        bitmap.set(offset, length)
        self._taken -= length

    def _leave(self) -> AbstractAsyncContextManager[None]:
        """Return what counts a request of the job, and waits while somebody holds those back."""
        if not self.holds_users:
            return self._source.traffic
        if self._source.node in reachable(self._target.node):  # held back by ourselves
            return nullcontext()
        return self._target.traffic

    @property
    def pivots(self) -> bool:
        """Whether the disk's users go to the target in the end."""
        return self._ending is End.PIVOT

    async def prepare(self) -> None:
        """Let the ledger say that the target is whole, before users change it."""
        if self.pivots:
            await self._ledger.finish()

    async def commit(self) -> None:
        """Lead the users to the target."""
        if not self.pivots:
            return
        graph, target = self._graph, self._target
        own = (self._source.edge, target.edge)
        users = [edge for edge in graph.users(self._replaces) if edge not in own]
        graph.rewire(Rewiring(access={target.edge: IDLE}))
        await graph.replace(self._replaces, target.node, users=users)

    async def clean(self) -> None:
        """Let go of both nodes, and of the users; whatever fails, the rest is done."""
        async with self._drain, AsyncExitStack() as steps:
            for handle in (self._target, self._source):
                steps.push_async_callback(self._graph.release, handle)
            if self._filter is not None:
                steps.push_async_callback(take_job_top, self._graph, self._filter)
            steps.callback(self._bonds.close)
            self._copy_mode = CopyMode.BACKGROUND
            await self._take_on_copy_mode()
            await self._ledger.stop(succeeded=self.error is None)
            self._bitmap = None
            if not self._source.closed and self._name in self._source.node.bitmaps:
                self._source.node.bitmaps[self._name].busy = False
                remove_bitmap(self._source.node, self._name)
