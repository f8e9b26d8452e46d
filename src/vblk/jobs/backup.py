"""A backup: a disk as it was when the job began, copied to another node while its users go on.

Owns: what is copied, in which order, and what becomes of the disk's bitmap. The
filter `copy-before-write` stands between the disk and its users until the job has
ended, so that what they change is copied first.

Ordering rule: the filter is there, and the bitmap begun anew, in one instant in which
nothing is in flight: the copy is the disk of that instant. The filter goes after the
bitmap was settled.

Source: QEMU's documentation, "Dirty Bitmaps and Incremental Backup"; qapi/block-core.json.
"""

import asyncio
import enum
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Unpack

from vblk.errors import BlockError, JobError
from vblk.filters.copy_before_write import CopyBeforeWriteNode, Options
from vblk.filters.once_copier import CopyFailed
from vblk.graph.digests import Seen
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.edge import READING
from vblk.graph.edges import Rewiring
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.surgery import passing
from vblk.jobs.backup_ledger import BackupLedger
from vblk.jobs.block_job import BlockJob, OnError
from vblk.jobs.job import Life
from vblk.jobs.verify import Checker
from vblk.jobs.walk import walk
from vblk.runtime.fan_out import fan_out
from vblk.units import MIB, align_up

WORKERS: Final = 8
WORKERS_MOST: Final = 64
PIECE: Final = 4 * MIB
"""The most bytes that one worker copies in one go: for so many a user may have to wait."""
PAUSE: Final = 0.1
"""So many seconds after a failure that is to be ignored it is tried again."""


class Sync(enum.Enum):
    """What is copied of the disk."""

    FULL = "full"
    TOP = "top"
    """What the top image holds itself."""
    NONE = "none"
    """Only what users are about to change, until the job is cancelled."""
    BITMAP = "bitmap"
    """What the bitmap marks."""


class BitmapMode(enum.Enum):
    """When what was copied is unmarked in the bitmap."""

    ON_SUCCESS = "on-success"
    NEVER = "never"
    ALWAYS = "always"
    """After a failure, too: then what was not copied stays marked."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a disk is backed up. `target_is_zero`: the target reads as zeros already."""

    sync: Sync = Sync.FULL
    bitmap: DirtyBitmap | None = None
    bitmap_mode: BitmapMode = BitmapMode.ON_SUCCESS
    on_source_error: OnError = OnError.REPORT
    on_target_error: OnError = OnError.REPORT
    target_is_zero: bool = False
    workers: int = WORKERS
    piece: int = PIECE
    """The most bytes of one copy, rounded up to whole units."""
    in_kernel: bool = True
    """Whether the kernel copies where it can."""
    verify: bool = False
    """Whether what was copied is compared in the end."""
    compress: bool = False
    """Whether the target, which can, stores it compressed."""


class BackupJob(BlockJob):
    """One backup, made by `prepare_backup`.

    Args:
        id: The job's.
        graph: The graph of both nodes.
        handle: A hold on the filter; the job lets go of it at its end.
        plan: How.
        ledger: What keeps, beside the target, what is in it, for a job that goes on after this one died.
        life: What every job has: listener, clock, speed and so on.
    """

    type: ClassVar[str] = "backup"

    def __init__(
        self,
        id: str,
        graph: Graph,
        handle: Handle,
        plan: Plan,
        *,
        ledger: BackupLedger | None = None,
        **life: Unpack[Life],
    ) -> None:
        assert isinstance(handle.node, CopyBeforeWriteNode)
        self._filter = handle.node
        self._copier = handle.node.copier
        self._copier.target_is_zero = plan.target_is_zero
        self._copier.in_kernel = plan.in_kernel and not plan.compress
        self._checker: Checker | None = None
        if plan.verify:
            self._checker = Checker(handle.node.target, self._copier.mover, handle.size)
        self._graph = graph
        self._handle = handle
        self._plan = plan
        self._ledger = ledger
        self._kicked = asyncio.Event()
        self._cursor = 0
        self._stumbled = False
        """Whether something failed since the last sweep began."""
        self._pins = ExitStack()
        super().__init__(id, **life)
        if plan.bitmap is not None:
            if plan.sync is Sync.BITMAP:
                self._copier.only(plan.bitmap)
            plan.bitmap.set_aside()
        why = f"block device is in use by block job: {self.type}"
        for node in (self._filter, self._filter.file, self._filter.target):
            self._pins.enter_context(graph.pinned(node, why))
        self._copier.progressed = self._account
        self._account()

    def hold(self) -> None:
        """Pause, also where the job only waits."""
        super().hold()
        self._kicked.set()

    async def run(self) -> None:
        """Copy what is to be copied, as long as nobody else has, and note meanwhile what was."""
        if self._ledger is None:
            await self._copy_all()
            return
        keeping = asyncio.ensure_future(self._ledger.keep(self.clock))
        try:
            await self._copy_all()
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _copy_all(self) -> None:
        if self._plan.sync is Sync.TOP:
            await self._leave_out_what_is_below()
        while self._plan.sync is Sync.NONE:
            await self.pause_point()
            self._kicked.clear()
            await self._kicked.wait()
        while self._copier.left:
            await self._sweep()
            await self.pause_point()
            if self._stumbled:
                await self.clock.sleep(PAUSE)
        async with self._handle.traffic:
            await self._filter.target.flush()
        if self._checker is not None:
            await self._verify(self._checker)

    async def _verify(self, checker: Checker) -> None:
        """Compare all that was copied with what it was when it was read."""

        async def check(seen: Seen) -> None:
            await self.pause_point()
            async with self._handle.traffic:
                await checker.check_seen(seen)

        await fan_out((check(seen) for seen in checker.digests.seen()), WORKERS)
        if checker.verified < self._copier.copied:
            raise JobError(
                f"only {checker.verified} of {self._copier.copied} bytes could be verified: too scattered"
            )

    async def _leave_out_what_is_below(self) -> None:
        """Copy nothing of what the top image does not hold itself.

        What users change meanwhile is copied, whatever it is, and harms nobody.
        """
        first = at = 0
        async for span in walk(self._handle, 0, self._handle.size, refined=False):
            await self.pause_point()
            if span.depth == 0 and span.present:
                self._copier.leave_out(first, at - first)
                first = span.guest_offset + span.length
            at = span.guest_offset + span.length
        self._copier.leave_out(first, at - first)
        self._account()

    async def _sweep(self) -> None:
        """Go over the disk once; a failure that does not end the job ends the sweep."""
        self._cursor = 0
        self._stumbled = False
        crowd = 1 if self.speed else self._plan.workers
        await fan_out((self._copy_pieces() for _ in range(crowd)), crowd)

    async def _copy_pieces(self) -> None:
        while not self.paused and not self._stumbled and (piece := self._next()) is not None:
            await self.pace(piece[1])
            try:
                async with self._handle.traffic:
                    await self._copier.copy(*piece)
            except CopyFailed as failure:
                self._note(failure)

    def _note(self, failure: CopyFailed) -> None:
        """Tell of the first failure of a sweep, and raise it if it ends the job."""
        if not self._stumbled:
            self._stumbled = True
            policy = self._plan.on_source_error if failure.reading else self._plan.on_target_error
            try:
                self.failed(failure.error, policy, reading=failure.reading)
            except BlockError as error:
                raise JobError(os.strerror(error.errno)) from error  # all that QEMU's events say

    def _next(self) -> tuple[int, int] | None:
        """Return the next range that is still to be copied, and go behind it."""
        size, todo = self._handle.size, self._copier.todo
        step = self._plan.piece if not self.speed else min(self._plan.piece, self.speed // 4)
        step = align_up(max(step, 1), todo.granularity)
        for offset, length, pending in todo.ranges(self._cursor, size - self._cursor):
            if pending:
                self._cursor = offset + min(length, step)
                return offset, self._cursor - offset
        self._cursor = size
        return None

    def _account(self) -> None:
        self.current = self._copier.copied
        self.total = self.current + self._copier.left

    def query_progress(self) -> dict[str, Any]:
        """Return what `query-job-progress` says, how much was compared, and whether it is resumable."""
        compared = {} if self._checker is None else {"verified-bytes": self._checker.verified}
        return super().query_progress() | compared | ({} if self._ledger is None else self._ledger.shown())

    def hindrance(self) -> str | None:
        """Say in words what keeps the job."""
        general = super().hindrance()
        if general is None and self._plan.sync is Sync.NONE and self.at_work:
            return "it saves what its users are about to change, until it is cancelled"
        if general is None and self._checker is not None and self.at_work and not self._copier.left:
            return "what was copied is compared"
        return general

    async def commit(self) -> None:
        """Settle the bitmap after a success."""
        self._settle_bitmap(succeeded=True)

    async def abort(self) -> None:
        """Settle the bitmap after a failure."""
        self._settle_bitmap(succeeded=False)

    def _settle_bitmap(self, *, succeeded: bool) -> None:
        bitmap, mode = self._plan.bitmap, self._plan.bitmap_mode
        if bitmap is None:
            return
        if mode is BitmapMode.NEVER or not (succeeded or mode is BitmapMode.ALWAYS):
            bitmap.take_back()
            return
        bitmap.forget_aside()
        if not succeeded:
            bitmap.merge(self._copier.todo)

    async def clean(self) -> None:
        """Lead the users back to the disk, and let go of both nodes."""
        graph, filter = self._graph, self._filter
        self._pins.close()
        if self._plan.compress:
            filter.target.compress(None)
        if not self._handle.closed:
            async with graph.changing(filter):
                filter.end_keeping()
                users = [edge for edge in passing(graph, filter) if edge is not self._handle.edge]
                graph.rewire(Rewiring(moved=dict.fromkeys(users, filter.file)))
                if self._ledger is not None:
                    await self._ledger.stop(succeeded=self.error is None)
        await graph.release(self._handle)


async def prepare_backup(
    id: str,
    graph: Graph,
    source: Node,
    target: Node,
    plan: Plan,
    *,
    filter_name: str | None = None,
    ledger: BackupLedger | None = None,
    **life: Unpack[Life],
) -> BackupJob:
    """Return a job that backs up `source` as it is at this instant to `target`, of the same size.

    Raises:
        GraphError: The two, or the name, cannot be, or a user forbids it.
        NodeBusy: Somebody counts on the source's users.
        JobError: The speed cannot be.
    """
    if source.size != target.size:
        raise JobError("Source and target image have different sizes")
    for node in (target, source):
        graph.require_unpinned(node)
    if ledger is not None:
        await ledger.prepare()
    async with graph.drained(source):
        filter = CopyBeforeWriteNode(
            filter_name or graph.unique_name(),
            source,
            target,
            engine=graph.engine,
            clock=graph.clock,
            options=Options(),
        )
        try:
            filter.put_over_both(graph)
            if ledger is not None:
                await ledger.start(filter.copier)
            await graph.insert_filter(source, filter)
        except BaseException:
            await graph.discard_unused(filter)
            if ledger is not None:
                await ledger.stop(succeeded=False)
            raise
        handle = graph.hold(filter, f"block job '{id}'", READING)
        try:
            return BackupJob(id, graph, handle, plan, ledger=ledger, **life)
        except BlockError:
            await graph.remove_filter(filter)
            await graph.release(handle)
            if ledger is not None:
                await ledger.stop(succeeded=False)
            raise
