"""Nodes that somebody fills with what shows through them, while others write to them.

Owns: the locks that keep an old copy from overwriting a newer write, and the filler's
own way into the node. As a node with dirty bitmaps, one that is filled changes its
class (`vblk.graph.kinds`); others pay for it only where the filler is at work.

Ordering rule: from the look at a range to the end of its copy nobody writes to it. The
disk reads the same before and after, so that the filler's writes are not marked.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import ClassVar

from vblk.graph.kinds import Extra, add_extra, plain_kind, remove_extra
from vblk.graph.node import Buffer, Node, Span
from vblk.runtime.range_lock import RangeGuard, RangeLock


class Filled(Extra):
    """What a node that is being filled does more than another."""

    below_name: ClassVar[str] = "unfilled"
    unfilled: ClassVar[type[Node]]
    filling: RangeLock

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once, where nothing is being filled."""
        return self.filling.may_share(offset, len(data)) and self.unfilled.try_write(self, offset, data)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write, when the range is filled."""
        async with self.filling.shared(offset, len(data)):
            await self.unfilled.write(self, offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros, when the range is filled."""
        async with self.filling.shared(offset, length):
            await self.unfilled.write_zeroes(
                self, offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua
            )

    async def discard(self, offset: int, length: int) -> None:
        """Discard, when the range is filled."""
        async with self.filling.shared(offset, length):
            await self.unfilled.discard(self, offset, length)

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Make room, when the range is filled."""
        async with self.filling.shared(offset, length), self.unfilled.place(self, offset, length) as spans:
            yield spans


class Filler:
    """The way into a node for who fills it; see `filled`. Each call is for a range that it has `alone`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._kind = plain_kind(node)
        self.locks = RangeLock()

    def alone(self, offset: int, length: int) -> RangeGuard:
        """Return a guard to `async with`: nobody else changes the range."""
        return self.locks.exclusive(offset, length)

    def place(self, offset: int, length: int) -> AbstractAsyncContextManager[list[Span]]:
        """Make room; see `Node.place`."""
        return self._kind.place(self._node, offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write; see `Node.write`."""
        await self._kind.write(self._node, offset, data)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Write zeros; see `Node.write_zeroes`."""
        await self._kind.write_zeroes(self._node, offset, length, unmap=unmap)


@contextmanager
def filled(node: Node) -> Generator[Filler, None, None]:
    """Let a node, which nobody fills, be filled while the block runs.

    Nothing may be in flight on the node when the block begins and ends.
    """
    assert not isinstance(node, Filled)
    filler = Filler(node)
    add_extra(node, Filled)
    assert isinstance(node, Filled)
    node.filling = filler.locks
    try:
        yield filler
    finally:
        remove_extra(node, Filled)
