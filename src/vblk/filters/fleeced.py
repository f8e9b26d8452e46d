"""A node that shows what a disk was, while its backing image, the disk itself, is written to: fleecing.

Owns: how such a node is read. It is the target of a `copy-before-write` node over
that disk: what is not in it yet is read from the disk, where nobody has changed it yet.

Ordering rule: a range is held while it is read, so that its old bytes are copied, and
changed in the disk, after that. Nobody is told where they are: they move.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Final

from vblk.extent import Kind
from vblk.graph.kinds import Extra, add_extra, remove_extra
from vblk.graph.mapper import Mapper, without_holes
from vblk.graph.node import Node, Span
from vblk.graph.plane import read_spans

_PLACED: Final = frozenset((Kind.DATA, Kind.ENCODED))

Holding = Callable[[int, int], AbstractAsyncContextManager[object]]
"""Holds a range, (offset, length), as it is."""


class Fleeced(Extra):
    """What the target of a `copy-before-write` node does otherwise where it stands on the disk."""

    below_name: ClassVar[str] = "plain"
    plain: ClassVar[type[Node]]
    holding: Holding
    is_still: Callable[[int, int], bool]

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read at once what nobody is copying."""
        return self.plain.try_read(self, offset, length) if self.is_still(offset, length) else None

    async def read(self, offset: int, length: int) -> bytes:
        """Read, while nobody copies or changes it."""
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read, while nobody copies or changes it."""
        assert isinstance(self, Mapper)
        async with self.holding(offset, len(buffer)):
            with self.reading():
                await read_spans(await self.plain.resolve(self, offset, len(buffer)), offset, buffer)

    def try_resolve(self, offset: int, length: int) -> list[Span] | None:
        """Answer with this node itself."""
        return [Span(Kind.DATA, offset, length, self, offset)]

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Answer with this node itself."""
        return [Span(Kind.DATA, offset, length, self, offset)]

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Tell holes from data, which is this node's own."""
        async with self.holding(offset, length):
            spans = await without_holes(await self.plain.resolve(self, offset, length))
        for span in spans:
            if span.kind in _PLACED:
                span.kind, span.leaf, span.leaf_offset = Kind.DATA, self, span.guest_offset
        return spans

    def cached_descriptor(self, offset: int, length: int) -> int | None:
        """Answer that there is none."""
        return None


def fleece(node: Node, holding: Holding, is_still: Callable[[int, int], bool]) -> None:
    """Let a node be read so; nothing may be in flight on it."""
    add_extra(node, Fleeced)
    assert isinstance(node, Fleeced)
    node.holding, node.is_still = holding, is_still


def end_fleecing(node: Node) -> None:
    """Let a node be read as any other; nothing may be in flight on it."""
    remove_extra(node, Fleeced)
