"""Committing layers of a chain that is in use: what they hold goes down into the base.

Owns: the order of the steps. Layers below the active one are committed by a sweep;
the active one by a mirror to the base, for its users go on writing. How a chain is
taken and its links change is `vblk.jobs.live_chain`'s.

Ordering rule: nothing is let go before all of it is in the base, durably; then the
files of the images above name the base, then the graph leads there. Until then each
layer covers in the base what came from it, so that the disk reads the same throughout.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from functools import partial
from typing import Any, ClassVar, Unpack

from vblk.codec.guid import Guid
from vblk.errors import BlockError, CopyDiffers, JobError
from vblk.filters.job_top import take_job_top
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.node import Node, Span
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.jobs.block_job import BlockJob, OnError
from vblk.jobs.commit_journal import CommitJournal, FinishedCommit
from vblk.jobs.image_removal import close_unused, remove_images
from vblk.jobs.job import Life
from vblk.jobs.live_chain import Grip, name_backing, overlays
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_ledger import NoLedger
from vblk.jobs.mirror_plan import Plan
from vblk.jobs.resumption import noted
from vblk.jobs.sweep import SweepJob
from vblk.jobs.verify import Checker, check_all, grouped
from vblk.jobs.walk import walk_by


class CommitJob(SweepJob):
    """Commits layers that nobody writes to, down into the base; whoever stands on them stands on it then.

    Args:
        id: The job's.
        grip: Its hold on the chain; the job lets go of it at its end.
        on_error: What becomes of failures.
        backing_file: The base's name in the files of those who stand on it then; by default where it is.
        verify: Whether the base is compared with what the layers hold before it takes their place.
        delete: Whether the layers' files are deleted in the end.
        journal: Where it is noted how far the job is; it is claimed, and the job lets go of it.
        filter: A node over the top that goes when the job ends.
        life: What every job has.
    """

    type: ClassVar[str] = "commit"

    def __init__(
        self,
        id: str,
        grip: Grip,
        on_error: OnError = OnError.REPORT,
        *,
        backing_file: str | None = None,
        verify: bool = False,
        delete: bool = False,
        journal: CommitJournal | None = None,
        filter: Node | None = None,
        **life: Unpack[Life],
    ) -> None:
        super().__init__(id, on_error, **life)
        self._grip = grip
        self._backing_file = backing_file
        self.mover = Mover(grip.graph.engine)
        self._checker: Checker | None = None
        if verify:
            self._checker = Checker(grip.writing.node, self.mover, grip.reading.size)
        self._delete = delete
        self._journal = journal
        self._filter = filter

    async def run(self) -> None:
        """Bring all data down, durably."""
        top, base = self._grip.reading, self._grip.writing
        await self._grip.announce(self._begin)
        size = self.total = top.size
        if base.size < size:
            await base.resize(size)
        async with self._noted():
            await self.sweep(size, 0 if self._journal is None else self._journal.done)
        await self._hide_behind(size)
        await base.flush()
        if self._checker is not None:
            await self._verify(self._checker)
        if self._journal is not None:
            await self._note(partial(self._journal.note, size))

    async def _begin(self, coming: Guid | None) -> None:
        if self._journal is not None:
            await self._note(partial(self._journal.begin, coming))

    async def _note(self, note: Callable[[], None]) -> None:
        await self._grip.graph.engine.run(note)

    def _noted(self) -> AbstractAsyncContextManager[None]:
        """Note how far the sweep is while the block runs."""
        if self._journal is None:
            return nullcontext()
        return noted(self._journal, self._grip.graph, self._grip.writing, lambda: self.current, self.clock)

    async def _verify(self, checker: Checker) -> None:
        """Compare the base with what the layers hold."""

        async def check(group: list[Span]) -> None:
            await self.pause_point()
            async with self._grip.reading.traffic, self._grip.writing.traffic:
                await checker.check(group)

        spans = walk_by(self.look, 0, self._grip.reading.size)
        try:
            await check_all(grouped(spans, checker.digests.unit), check)
        except CopyDiffers:
            self.current = 0  # who resumes the job has all of it brought down again
            if self._journal is not None:
                await self._note(partial(self._journal.note, 0))
            raise

    def query_progress(self) -> dict[str, Any]:
        """Return what `query-job-progress` says, and how much was compared, where that is wanted."""
        compared = {} if self._checker is None else {"verified-bytes": self._checker.verified}
        return super().query_progress() | compared

    async def _hide_behind(self, size: int) -> None:
        """Zero what those who are larger than the top would see of a base that is larger, too."""
        base = self._grip.writing
        above = overlays(self._grip.graph, self._grip.stretch.top)
        end = min(base.size, max((image.size for image in above), default=0))
        if end > size:
            await base.write_zeroes(size, end - size, unmap=True)

    async def look(self, offset: int, length: int) -> list[Span]:
        """Return what the layers hold."""
        async with self._grip.reading.traffic:
            return await self._grip.stretch.held(offset, length)

    async def carry(self, offset: int, length: int) -> None:
        """Bring it into the base."""
        async with self._grip.reading.traffic, self._grip.writing.traffic:
            for span in await self._grip.stretch.held(offset, length):
                if self._journal is not None:
                    self._journal.touch()
                await self.mover.bring(span, self._grip.writing.node)

    def _is_reading(self, error: BlockError) -> bool:
        """Tell by whose file it is."""
        return not self._grip.is_of_base(error)

    async def prepare(self) -> None:
        """Let the images above stand on the base, first in their files."""
        grip, journal = self._grip, self._journal
        above = overlays(grip.graph, grip.stretch.top)
        if journal is not None:
            await self._note(partial(journal.linking, len(above)))
        for image in above:
            await name_backing(grip.graph, image, grip.base, self._backing_file)
        if journal is not None:
            await self._note(journal.linked)
        await grip.lead_users()

    async def abort(self) -> None:
        """Leave a chain whose links are as simple as before, and note how far the job came."""
        await settle(self._grip)
        if self._journal is not None and self.current > self._journal.done:
            with suppress(BlockError):
                await self._grip.writing.flush()
                await self._note(partial(self._journal.note, self.current))

    async def clean(self) -> None:
        """Let go of the chain; images that nobody uses any more are closed, or deleted."""
        grip, journal = self._grip, self._journal
        async with AsyncExitStack() as steps:
            if journal is not None:
                steps.push_async_callback(self._note, journal.close)
            try:
                if self._filter is not None:
                    await take_job_top(grip.graph, self._filter)
            finally:
                await grip.release()
            if self.error is None and self._delete:
                await delete_layers(grip)
            if journal is not None:
                await self._note(journal.end if self.error is None else journal.rest)


async def delete_layers(grip: Grip) -> None:
    """Close the layers of a commit that came to its end, and delete their files.

    Raises:
        BlockError: Somebody uses one; the others are deleted.
    """
    try:
        await close_unused(grip.graph, grip.stretch.layers)
    finally:
        await remove_images(grip.graph, grip.paths)


class FinishJob(BlockJob):
    """Ends a commit that died when the layers were out of the chain already; deletes these, if wanted."""

    type: ClassVar[str] = "commit"

    def __init__(
        self, id: str, graph: Graph, commit: FinishedCommit, *, delete: bool, **life: Unpack[Life]
    ) -> None:
        super().__init__(id, **life)
        self._graph = graph
        self._commit = commit
        self._delete = delete

    async def run(self) -> None:
        """Delete what is left."""
        engine = self._graph.engine
        if self._delete:
            if not self._commit.is_linked:
                raise JobError("more than one image stood on the layers: delete them when none does")
            await remove_images(self._graph, await engine.run(self._commit.left))
        await engine.run(self._commit.end)

    async def clean(self) -> None:
        """Let go of the journal."""
        self._commit.close()


async def settle(grip: Grip) -> None:
    """Let the links be simple where layers stay; where that fails the chain opens all the same."""
    with suppress(BlockError):
        await grip.settle()


class ActiveCommitJob(MirrorJob):
    """Commits the layer that is written to, and all down to the base, whom its users use in the end.

    Args:
        id: The job's.
        grip: Its hold on the chain; the job lets go of it at its end.
        on_error: What becomes of failures.
        verify: Whether the base is compared with what the layers hold before the job is ready.
        delete: Whether the layers' files are deleted when the users have gone to the base.
        filter: A node over the top that goes when the job ends.
        ledger: See `MirrorJob`.
        life: What every job has.
    """

    type: ClassVar[str] = "commit"

    def __init__(
        self,
        id: str,
        grip: Grip,
        on_error: OnError = OnError.REPORT,
        *,
        verify: bool = False,
        delete: bool = False,
        filter: Node | None = None,
        ledger: NoLedger | None = None,
        **life: Unpack[Life],
    ) -> None:
        plan = Plan(
            on_source_error=on_error, on_target_error=on_error, target_may_be_larger=True, verify=verify
        )
        super().__init__(
            id, grip.graph, grip.reading, grip.writing, plan, filter=filter, ledger=ledger, **life
        )
        self._grip = grip
        self._delete = delete

    async def _prepare_target(self) -> None:
        """Let the base be changed under those who stand on it, and be large enough."""
        top, base = self._grip.reading, self._grip.writing
        await self._grip.announce()
        if base.size < top.size:
            await base.resize(top.size)

    async def _mark_what_is_there(self, bitmap: DirtyBitmap) -> None:
        """Mark what the layers hold."""

        async def look(offset: int, length: int) -> list[Span]:
            async with self._grip.reading.traffic:
                return await self.spans(offset, length)

        async for span in walk_by(look, 0, self._grip.reading.size):
            await self.pause_point()
            self._mark(bitmap, span.guest_offset, span.length)
        self._account(bitmap)

    def _copied_at_once(self, offset: int, length: int) -> bool:
        """Look at the layers first: what shows of the base is there already."""
        return False

    async def spans(self, offset: int, length: int) -> list[Span]:
        """Return what the layers hold of a range."""
        return await self._grip.stretch.held(offset, length)

    def _is_reading(self, error: BlockError) -> bool:
        """Tell by whose file it is."""
        return not self._grip.is_of_base(error)

    async def commit(self) -> None:
        """Lead the users to the base, if they are to go."""
        if self.pivots:
            await self._grip.lead_users(leaves_writable=not self._grip.stretch.top.read_only)
        else:
            await settle(self._grip)

    async def abort(self) -> None:
        """Leave a chain whose links are as simple as before."""
        await settle(self._grip)

    async def clean(self) -> None:
        """Let go of the chain; images that nobody uses any more are closed."""
        self._grip.thaw()
        await super().clean()
        await self._grip.release()
        if self.pivots and self.error is None and self._delete:
            await delete_layers(self._grip)
