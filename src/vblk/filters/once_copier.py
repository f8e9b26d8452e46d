"""Copying each part of a disk to another node once: the bytes that were there first.

Owns: which parts are still to be copied, the copying itself, and the locks under
which a part is copied. Several may ask for the same parts: writers who are about
to change them, and a job that goes over the whole disk.

Ordering rule: a part is copied, and no longer to be copied, before the lock on it
is given back. So what is to be copied is unchanged in the source, and what is not
is whole in the target.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from vblk.aio.engine import Engine
from vblk.errors import BlockError
from vblk.extent import Kind
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.edges import reachable
from vblk.graph.mapper import Mapper, has_descriptor, reaches_kernel
from vblk.graph.node import Node, Span, coalesce
from vblk.graph.plane import Mover
from vblk.runtime.range_lock import RangeLock
from vblk.units import KIB, MIB, align_down, align_up

UNIT: Final = 64 * KIB
"""The least bytes that are copied together."""

BUFFER: Final = MIB
"""The most bytes of one piece that pass through memory at a time."""


class CopyFailed(Exception):
    """A part could not be copied. `reading` tells whether the source failed, or else the target."""

    def __init__(self, error: BlockError, *, reading: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.reading = reading


def unit_for(target: Node) -> int:
    """Return the least bytes that are copied together to a node."""
    if isinstance(target, Mapper) and target.takes_backing:
        # A piece of a cluster would be completed from a backing image, which may have changed.
        return max(UNIT, target.allocation_unit)
    return UNIT


class Notes(ABC):
    """Who notes durably what was copied: users change nothing before its old bytes are noted."""

    @abstractmethod
    def has(self, offset: int, length: int) -> bool:
        """Tell whether all of a range is noted, or nothing is noted any more."""

    @abstractmethod
    def copied(self, offset: int, length: int) -> None:
        """Be told of whole units that were copied, or are not to be; it runs to completion."""

    @abstractmethod
    async def noted(self, offset: int, length: int) -> None:
        """Return when a range that was copied is noted. It raises nothing but a cancellation."""


class OnceCopier:
    """Copies parts of `source` to the same places of `target`, each once.

    `todo` are the parts that are still to be copied: all, unless somebody who has
    not begun to copy resets some. `copied` counts the bytes that were. With
    `target_is_zero` zeros need not be written, with `in_kernel` the kernel copies
    where it can.

    Concurrency: any number of callers; one range is copied by one at a time.
    """

    def __init__(self, engine: Engine, source: Node, target: Node) -> None:
        self.source = source
        self.target = target
        self.target_is_zero = False
        self.in_kernel = True
        self.todo = DirtyBitmap("todo", source.size, unit_for(target))
        self.todo.set(0, source.size)
        self.locks = RangeLock()
        self.copied = 0
        self.progressed: Callable[[], None] | None = None
        """Called when something was copied."""
        self._notes: Notes | None = None
        self.mover = Mover(engine)

    def only(self, bitmap: DirtyBitmap) -> None:
        """Copy no more than what a bitmap marks; nothing was copied yet.

        Raises:
            GraphError: It is of a disk of another size.
        """
        self.todo.clear()
        self.todo.merge(bitmap)

    def note_in(self, notes: Notes, unit: int) -> None:
        """Have notes taken, of larger units, none of which is to be copied until `todo` says so."""
        assert unit >= self.todo.granularity
        self.todo = DirtyBitmap("todo", self.source.size, unit)
        self._notes = notes

    def leave_out(self, offset: int, length: int) -> None:
        """Copy nothing of the units that lie in a range wholly."""
        self.todo.reset(offset, length)
        if self._notes is not None:
            unit, end = self.todo.granularity, offset + length
            start = align_up(offset, unit)
            end = end if end == self.source.size else align_down(end, unit)
            if start < end:
                self._notes.copied(start, end - start)

    @property
    def left(self) -> int:
        """The bytes of the disk that are still to be copied."""
        return self.todo.guest_bytes

    def is_done(self, offset: int, length: int) -> bool:
        """Tell whether nothing of a range is to be copied any more."""
        return not any(pending for _, _, pending in self.todo.ranges(offset, length))

    def is_kept(self, offset: int, length: int) -> bool:
        """Tell whether a range may be changed: nothing of it is to be copied, or noted, any more."""
        return self.is_done(offset, length) and (self._notes is None or self._notes.has(offset, length))

    async def keep(self, offset: int, length: int) -> None:
        """Copy what is still to be copied of a range, and return when it may be changed.

        Raises:
            CopyFailed: A part could not be copied.
        """
        await self.copy(offset, length)
        if self._notes is not None:
            await self._notes.noted(*self.whole(offset, length))

    def whole(self, offset: int, length: int) -> tuple[int, int]:
        """Return the range of whole units, cut by the disk's end, in which a range lies."""
        unit = self.todo.granularity
        start = align_down(offset, unit)
        return start, min(align_up(offset + length, unit), self.source.size) - start

    async def copy(self, offset: int, length: int) -> None:
        """Copy what of a range is still to be copied, in whole units; return when it is all in the target.

        Raises:
            CopyFailed: A part could not be; it is still to be copied.
        """
        if self.is_done(offset, length):
            return
        start, count = self.whole(offset, length)
        async with self.locks.exclusive(start, count):
            for at, piece, pending in list(self.todo.ranges(start, count)):
                if pending:
                    await self._copy(at, piece)
                    self.todo.reset(at, piece)
                    self.copied += piece
                    if self._notes is not None:
                        self._notes.copied(at, piece)
                    if self.progressed is not None:
                        self.progressed()

    async def _copy(self, offset: int, length: int) -> None:
        try:
            spans = await self.source.allocation(offset, length)
        except BlockError as error:
            raise CopyFailed(error, reading=True) from error
        for span in coalesce(spans):
            await self._copy_span(span)

    async def _copy_span(self, span: Span) -> None:
        if (
            span.kind is Kind.DATA
            and self.in_kernel
            and self.mover.digests is None
            and has_descriptor(span.leaf)
            and reaches_kernel(self.target)
        ):
            try:
                await self.mover.move(span, self.target, span.guest_offset)
            except BlockError as error:
                # Both sides are in one call, so the file says whose failure it was.
                reading = error.filename in {node.filename for node in reachable(self.source)}
                raise CopyFailed(error, reading=reading) from error
            return
        end = span.guest_offset + span.length
        step = max(BUFFER, self.todo.granularity) if span.kind is not Kind.ZERO else span.length
        for at in range(span.guest_offset, end, step):
            await self._copy_by_memory(at, min(step, end - at), is_zero=span.kind is Kind.ZERO)

    async def _copy_by_memory(self, offset: int, length: int, *, is_zero: bool) -> None:
        if is_zero and self.mover.digests is not None:
            self.mover.digests.note_zeros(offset, length)
        if is_zero and self.target_is_zero:
            return
        data = b""
        if not is_zero:
            try:
                data = await self.source.read(offset, length)
            except BlockError as error:
                raise CopyFailed(error, reading=True) from error
            await self.mover.saw(offset, data)
        try:
            if is_zero:
                await self.target.write_zeroes(offset, length, unmap=True)
            else:
                await self.target.write(offset, data)
        except BlockError as error:
            raise CopyFailed(error, reading=False) from error
