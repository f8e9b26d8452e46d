"""Nodes that somebody follows: each change of theirs is passed on before it is answered.

Owns: which operations are passed on, and how a node begins and ends to do so. As a
node with dirty bitmaps, one that is followed changes its class (`vblk.graph.kinds`);
what becomes of a change is the follower's business.

Ordering rule: a change has its range for itself from before it is made until the
follower has it too. What arrives through a descriptor outside of a `place` is not
passed on; the follower is told of it.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import ClassVar

from vblk.graph.kinds import Extra, add_extra, remove_extra
from vblk.graph.node import Buffer, Leaf, Node, Span


class Change(ABC):
    """One change that a follower takes part in. None of these raises anything but a cancellation."""

    @property
    @abstractmethod
    def follower(self) -> "Follower":
        """Who takes part."""

    @abstractmethod
    async def wrote(self, offset: int, data: Buffer) -> None:
        """Follow a write that went well."""

    @abstractmethod
    async def zeroed(self, offset: int, length: int, *, unmap: bool) -> None:
        """Follow a range that reads as zeros now."""

    @abstractmethod
    async def changed(self, offset: int, length: int) -> None:
        """Follow a change that is known by its range only."""


class Follower(ABC):
    """Who takes part in every change of a node."""

    @abstractmethod
    def change(self, offset: int, length: int) -> AbstractAsyncContextManager[Change]:
        """Have a range, alone, while the block changes it and says what it did."""

    @abstractmethod
    def disturbed(self, offset: int, length: int, by: Change | None) -> None:
        """Note a change that nobody passes on, unless what it belongs to does."""


_under_way: ContextVar[tuple[Change, ...]] = ContextVar("under_way", default=())
"""The changes that this task makes: what one consists of is not passed on again."""


def _whole(follower: Follower) -> Change | None:
    """Return the change that what a task does belongs to."""
    return next((change for change in _under_way.get() if change.follower is follower), None)


@asynccontextmanager
async def _change(follower: Follower, offset: int, length: int) -> AsyncGenerator[Change | None]:
    """Have a range while the block changes it; yield None where it is a part of a change that is followed."""
    whole = _whole(follower)
    if whole is not None:
        try:
            yield None
        finally:
            follower.disturbed(offset, length, whole)
        return
    async with follower.change(offset, length) as change:
        token = _under_way.set((*_under_way.get(), change))
        try:
            yield change
        finally:
            _under_way.reset(token)


class Followed(Extra):
    """What a node that is followed does more than another."""

    below_name: ClassVar[str] = "plain"
    plain: ClassVar[type[Node]]
    follower: Follower

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Leave it to `write`, which passes it on."""
        return False

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write, and pass it on."""
        write = self.plain.write
        async with _change(self.follower, offset, len(data)) as change:
            await write(self, offset, data, fua=fua)
            if change is not None:
                await change.wrote(offset, data)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros, and pass it on."""
        write_zeroes = self.plain.write_zeroes
        async with _change(self.follower, offset, length) as change:
            await write_zeroes(self, offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua)
            if change is not None:
                await change.zeroed(offset, length, unmap=unmap)

    async def discard(self, offset: int, length: int) -> None:
        """Discard, and pass on what came of it."""
        discard = self.plain.discard
        async with _change(self.follower, offset, length) as change:
            await discard(self, offset, length)
            if change is not None:
                await change.changed(offset, length)

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Make room, and pass on what was put there."""
        place = self.plain.place
        async with _change(self.follower, offset, length) as change:
            async with place(self, offset, length) as spans:
                yield spans
            if change is not None:
                await change.changed(offset, length)

    def written(self, offset: int, length: int) -> None:
        """Note what arrived through a leaf's descriptor."""
        assert isinstance(self, Leaf)
        assert issubclass(self.plain, Leaf)
        self.plain.written(self, offset, length)
        self.follower.disturbed(offset, length, _whole(self.follower))


def follow(node: Node, follower: Follower) -> None:
    """Let a follower take part in all changes of a node, which nobody follows; nothing may be in flight."""
    assert not isinstance(node, Followed)
    add_extra(node, Followed)
    assert isinstance(node, Followed)
    node.follower = follower


def leave(node: Node) -> None:
    """Follow a node no more; nothing may be in flight on it."""
    remove_extra(node, Followed)
