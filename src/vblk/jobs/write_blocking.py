"""Copy mode `write-blocking` of a mirror: what users change is on the target before they are answered.

Owns: what becomes of such a change. So the marks of a disk become fewer whatever its
users do, and the mirror converges. No failure of the target is the users' business.

Ordering rule: units of the bitmap are had by one change or one background copy at a
time. A change is marked as any other; its marks are taken back when the target has it,
where nothing else in the unit had to be copied.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.following import Change, Follower
from vblk.graph.node import Buffer, Node
from vblk.jobs.mirror_target import MirrorTarget
from vblk.runtime.range_lock import RangeLock
from vblk.units import MIB, align_down, align_up

COPIED_MOST: Final = 16 * MIB
"""So much data of a change of which the range alone is known is copied at once; the rest stays marked."""


class Owner(Protocol):
    """The mirror job, as changes see it."""

    @property
    def passes_on(self) -> bool:
        """Whether changes go to the target now."""
        ...

    def passed_on(self, length: int) -> None:
        """Count bytes that went to the target."""
        ...

    def stumbled(self, error: BlockError) -> None:
        """Deal with a failure; the change stays marked."""
        ...


class WriteBlocking(Follower):
    """Passes the changes of a mirror's source on to its target."""

    def __init__(
        self, owner: Owner, source: Node, target: MirrorTarget, bitmap: DirtyBitmap, locks: RangeLock
    ) -> None:
        self.owner = owner
        self.source = source
        self.target = target
        self.bitmap = bitmap
        self._locks = locks
        self._changes: list[_PassedOn] = []
        self._efforts: set[asyncio.Future[None]] = set()
        self._is_over = False

    @asynccontextmanager
    async def change(self, offset: int, length: int) -> AsyncGenerator[Change]:
        """Have the units of a range, alone."""
        unit = self.bitmap.granularity
        start = align_down(offset, unit)
        async with self._locks.exclusive(start, align_up(offset + length, unit) - start):
            change = _PassedOn(self, offset, length)
            self._changes.append(change)
            try:
                yield change
            finally:
                self._changes.remove(change)

    def disturbed(self, offset: int, length: int, by: Change | None) -> None:
        """Let the marks of all changes stay that this one meets."""
        unit = self.bitmap.granularity
        start, end = align_down(offset, unit), align_up(offset + length, unit)
        for change in self._changes:
            if change is not by and change.offset < end and start < change.end:
                change.is_disturbed = True

    def abandon(self) -> None:
        """Pass nothing on any more, and let go who waits for the target."""
        self._is_over = True
        for effort in self._efforts:
            effort.cancel()

    async def passed(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Carry out what goes to the target; tell whether it arrived."""
        if self._is_over or not self.owner.passes_on:
            return False
        effort = asyncio.ensure_future(work())
        self._efforts.add(effort)
        try:
            await asyncio.wait([effort])
        finally:
            self._efforts.discard(effort)
            if not effort.done():
                effort.cancel()
                await asyncio.wait([effort])
        if effort.cancelled():
            return False
        error = effort.exception()
        if isinstance(error, BlockError):
            self.owner.stumbled(error)
        elif error is not None:  # a defect of ours is no reason to fail the user's request
            self.owner.stumbled(BlockError(f"internal error: {type(error).__name__}: {error}"))
        return error is None


class _PassedOn(Change):
    """One change of the source."""

    def __init__(self, follower: WriteBlocking, offset: int, length: int) -> None:
        self._follower = follower
        self.offset = offset
        self.end = offset + length
        self.is_disturbed = False
        self._was_clean = [not follower.bitmap.is_dirty(at) for at in (offset, self.end - 1)]

    @property
    def follower(self) -> WriteBlocking:
        """Who passes it on."""
        return self._follower

    async def wrote(self, offset: int, data: Buffer) -> None:
        """Write the same to the target."""
        await self._pass_on(offset, len(data), lambda: self._follower.target.write(offset, data))

    async def zeroed(self, offset: int, length: int, *, unmap: bool) -> None:
        """Let the target read as zeros there."""
        zero = self._follower.target.zero
        await self._pass_on(offset, length, lambda: zero(offset, length, unmap=unmap))

    async def changed(self, offset: int, length: int) -> None:
        """Copy what the source shows now."""
        source, target = self._follower.source, self._follower.target
        copied: list[tuple[int, int]] = []

        async def copy() -> None:
            left = COPIED_MOST
            for span in await source.allocation(offset, length):
                if span.kind is not Kind.ZERO:
                    if span.length > left:
                        continue
                    left -= span.length
                await target.copy(source, span)
                copied.append((span.guest_offset, span.length))

        if self.end <= target.node.size:
            await self._follower.passed(copy)
        for start, count in _joined(copied):
            self._arrived(start, count)

    async def _pass_on(self, offset: int, length: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.end <= self._follower.target.node.size and await self._follower.passed(work):
            self._arrived(offset, length)

    def _arrived(self, offset: int, length: int) -> None:
        """Take the marks of a range back: of whole units, and of those in part that were clean before."""
        self._follower.owner.passed_on(length)
        if self.is_disturbed:
            return
        unit = self._follower.bitmap.granularity
        first_was_clean, last_was_clean = self._was_clean
        end = offset + length
        start = (align_down if offset == self.offset and first_was_clean else align_up)(offset, unit)
        if (end == self.end and last_was_clean) or end == self._follower.source.size:
            end = align_up(end, unit)
        else:
            end = align_down(end, unit)
        if start < end:
            self._follower.bitmap.reset(start, end - start)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join (offset, length) that continue each other."""
    joined: list[tuple[int, int]] = []
    for offset, length in ranges:
        if joined and sum(joined[-1]) == offset:
            offset, length = joined[-1][0], joined[-1][1] + length
            joined.pop()
        joined.append((offset, length))
    return joined
