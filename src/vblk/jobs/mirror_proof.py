"""Comparing a mirror's target with its source, while users go on writing.

Owns: what was copied and is still to be compared, and what a difference means where
users may be about to change the source. The comparison itself is `vblk.jobs.verify`'s.

Ordering rule: a range is due before its bytes go to the target, and not due any more
before it is compared; what fails is due again. What is marked as changed is left out:
it is copied anew, and due then.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from vblk.errors import BlockError, CopyDiffers
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.node import Node, Span
from vblk.graph.plane import Mover
from vblk.jobs.verify import Checker, grouped
from vblk.runtime.fan_out import fan_out

WORKERS: Final = 8


class Owner(Protocol):
    """The mirror job, as its proof sees it."""

    @property
    def holds_users(self) -> bool:
        """Whether the disk's users wait."""
        ...

    @property
    def has_stopped(self) -> bool:
        """Whether nothing new is to begin now."""
        ...

    @property
    def piece(self) -> int:
        """The most bytes that are had at a time."""
        ...

    def had(self, offset: int, length: int) -> AbstractAsyncContextManager[None]:
        """Have a range of the target alone."""
        ...

    def still(self) -> AbstractAsyncContextManager[None]:
        """Hold the disk's users back; nothing is in flight."""
        ...

    async def spans(self, offset: int, length: int) -> list[Span]:
        """Return what of a range has to be on the target."""
        ...

    def stumble(self, error: BlockError) -> None:
        """Deal with a failure."""
        ...


class MirrorProof:
    """What of a mirror's target is to be compared yet.

    Args:
        target: The node that is compared.
        mover: What brings bytes there.
        size: The disk's, in bytes.
        granularity: That of the mirror.
    """

    def __init__(self, target: Node, mover: Mover, size: int, granularity: int) -> None:
        self.due = DirtyBitmap("due", size, granularity)
        self.checker = Checker(target, mover, size)

    def changes(self, offset: int, length: int) -> None:
        """Note that a range of the target is about to change."""
        self.checker.digests.forget(offset, length)
        self.due.set(offset, length)

    async def sweep(self, owner: Owner, dirty: DirtyBitmap) -> None:
        """Go over what is due once, and compare it.

        Raises:
            CopyDiffers: The target is not what the source is.
            BlockError: A failure that ends the job.
        """
        size, cursor = self.due.size, 0

        def take() -> tuple[int, int] | None:
            nonlocal cursor
            for offset, length, is_due in self.due.ranges(cursor, size - cursor):
                if is_due:
                    length = min(length, owner.piece)
                    self.due.reset(offset, length)
                    cursor = offset + length
                    return offset, length
            cursor = size
            return None

        async def work() -> None:
            while not owner.has_stopped and (taken := take()) is not None:
                try:
                    await self._check(owner, dirty, *taken)
                except BaseException as error:
                    self.due.set(*taken)
                    if not isinstance(error, BlockError) or isinstance(error, CopyDiffers):
                        raise
                    owner.stumble(error)

        await fan_out((work() for _ in range(WORKERS)), WORKERS)

    async def _check(self, owner: Owner, dirty: DirtyBitmap, offset: int, length: int) -> None:
        """Compare a range; a difference counts when no user can be about to change the source there."""

        async def check() -> None:
            for start, count, is_dirty in list(dirty.ranges(offset, length)):
                if not is_dirty:
                    await self._compare(await owner.spans(start, count))

        try:
            async with owner.had(offset, length):
                await check()
        except CopyDiffers:
            if owner.holds_users:
                raise
            async with owner.still():
                await check()

    async def _compare(self, spans: Sequence[Span]) -> None:
        async def each() -> AsyncGenerator[Span]:
            for span in spans:
                yield span

        async for group in grouped(each(), self.checker.digests.unit):
            await self.checker.check(group)
