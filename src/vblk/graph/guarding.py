"""Nodes that are guarded: somebody has a say before each change of theirs.

Owns: which operations ask, and how a node begins and ends to be guarded. As a node
with dirty bitmaps, one that is guarded changes its class (`vblk.graph.kinds`); what
has to be done before a change is its guard's business.

Ordering rule: a change begins when its guard permits it, and the guard knows of it
from that instant, without an await between, until it has ended.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import ClassVar

from vblk.graph.kinds import Extra, add_extra, remove_extra
from vblk.graph.node import Buffer, Node, Span

Ticket = tuple[int, int]
"""What a guard gives to a change that begins: a first unit of its own, and the one behind the last."""


class Guard(ABC):
    """Who has a say before a node is changed. Ranges are bytes of the node."""

    @abstractmethod
    def enter(self, offset: int, length: int) -> Ticket | None:
        """Let a change begin, and return what `leave` takes; None: it has to wait for `permit`."""

    @abstractmethod
    async def permit(self, offset: int, length: int) -> None:
        """Return when it is worth to `enter` again. It raises nothing but a cancellation."""

    @abstractmethod
    def leave(self, ticket: Ticket) -> None:
        """Note that a change has ended, well or not."""

    @abstractmethod
    def flushing(self) -> None:
        """Note that what was held back is written now: before and after that."""


class Guarded(Extra):
    """What a node that is guarded does more than another."""

    below_name: ClassVar[str] = "unguarded"
    unguarded: ClassVar[type[Node]]
    guard: Guard

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once, if that is permitted at once."""
        guard = self.guard
        ticket = guard.enter(offset, len(data))
        if ticket is None:
            return False
        try:
            return self.unguarded.try_write(self, offset, data)
        finally:
            guard.leave(ticket)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write, when that is permitted."""
        async with _permitted(self.guard, offset, len(data)):
            await self.unguarded.write(self, offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros, when that is permitted."""
        async with _permitted(self.guard, offset, length):
            await self.unguarded.write_zeroes(
                self, offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua
            )

    async def discard(self, offset: int, length: int) -> None:
        """Discard, when that is permitted."""
        async with _permitted(self.guard, offset, length):
            await self.unguarded.discard(self, offset, length)

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Make room, when that is permitted; it ends when the bytes are there."""
        async with (
            _permitted(self.guard, offset, length),
            self.unguarded.place(self, offset, length) as spans,
        ):
            yield spans

    async def flush(self) -> None:
        """Flush, which may write."""
        self.guard.flushing()
        try:
            await self.unguarded.flush(self)
        finally:
            self.guard.flushing()


@asynccontextmanager
async def _permitted(guard: Guard, offset: int, length: int) -> AsyncGenerator[None]:
    while (ticket := guard.enter(offset, length)) is None:
        await guard.permit(offset, length)
    try:
        yield
    finally:
        guard.leave(ticket)


def guard_node(node: Node, guard: Guard) -> None:
    """Let somebody have a say in all changes of a node, which nobody guards; nothing may be in flight."""
    assert not isinstance(node, Guarded)
    add_extra(node, Guarded)
    assert isinstance(node, Guarded)
    node.guard = guard


def is_guarded(node: Node) -> bool:
    """Tell whether somebody guards a node."""
    return isinstance(node, Guarded)


def unguard(node: Node) -> None:
    """Guard a node no more; nothing may be in flight on it."""
    remove_extra(node, Guarded)
