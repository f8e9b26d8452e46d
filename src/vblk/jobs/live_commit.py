"""Committing layers of a chain that is in use: what they hold goes down into the base.

Owns: the order of the steps. Layers below the active one are committed by a sweep;
the active one by a mirror to the base, for its users go on writing. How a chain is
taken and its links change is `vblk.jobs.live_chain`'s.

Ordering rule: nothing is let go before all of it is in the base, durably; then the
files of the images above name the base, then the graph leads there. Until then each
layer covers in the base what came from it, so that the disk reads the same throughout.
"""

from contextlib import suppress
from typing import Any, ClassVar, Unpack

from vblk.errors import BlockError
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.node import Span
from vblk.graph.plane import Mover
from vblk.jobs.block_job import OnError
from vblk.jobs.job import Life
from vblk.jobs.live_chain import Grip, name_backing, overlays
from vblk.jobs.mirror import MirrorJob
from vblk.jobs.mirror_plan import Plan
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
        **life: Unpack[Life],
    ) -> None:
        super().__init__(id, on_error, **life)
        self._grip = grip
        self._backing_file = backing_file
        self._mover = Mover(grip.graph.engine)
        self._checker: Checker | None = None
        if verify:
            self._checker = Checker(grip.writing.node, self._mover, grip.reading.size)

    async def run(self) -> None:
        """Bring all data down, durably."""
        top, base = self._grip.reading, self._grip.writing
        await self._grip.announce()
        size = self.total = top.size
        if base.size < size:
            await base.resize(size)
        await self.sweep(size)
        await self._hide_behind(size)
        await base.flush()
        if self._checker is not None:
            await self._verify(self._checker)

    async def _verify(self, checker: Checker) -> None:
        """Compare the base with what the layers hold."""

        async def check(group: list[Span]) -> None:
            await self.pause_point()
            async with self._grip.reading.traffic, self._grip.writing.traffic:
                await checker.check(group)

        spans = walk_by(self.look, 0, self._grip.reading.size)
        await check_all(grouped(spans, checker.digests.unit), check)

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
                await self._mover.bring(span, self._grip.writing.node)

    def _is_reading(self, error: BlockError) -> bool:
        """Tell by whose file it is."""
        return not self._grip.is_of_base(error)

    async def prepare(self) -> None:
        """Let the images above stand on the base, first in their files."""
        grip = self._grip
        for image in overlays(grip.graph, grip.stretch.top):
            await name_backing(grip.graph, image, grip.base, self._backing_file)
        await grip.lead_users()

    async def abort(self) -> None:
        """Leave a chain whose links are as simple as before."""
        await settle(self._grip)

    async def clean(self) -> None:
        """Let go of the chain; images that nobody uses any more are closed."""
        await self._grip.release()


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
        **life: Unpack[Life],
    ) -> None:
        plan = Plan(
            on_source_error=on_error, on_target_error=on_error, target_may_be_larger=True, verify=verify
        )
        super().__init__(id, grip.graph, grip.reading, grip.writing, plan, **life)
        self._grip = grip

    async def run(self) -> None:
        """Bring all down, get ready, and keep in step until the end."""
        top, base = self._grip.reading, self._grip.writing
        await self._grip.announce()
        if base.size < top.size:
            await base.resize(top.size)
        await super().run()

    async def _mark_what_is_there(self, bitmap: DirtyBitmap) -> None:
        """Mark what the layers hold."""

        async def look(offset: int, length: int) -> list[Span]:
            async with self._grip.reading.traffic:
                return await self.spans(offset, length)

        async for span in walk_by(look, 0, self._grip.reading.size):
            await self.pause_point()
            bitmap.set(span.guest_offset, span.length)
        self._account(bitmap)

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
