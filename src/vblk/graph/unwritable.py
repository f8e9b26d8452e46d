"""Nodes that nobody writes to, ever.

Owns: the refusal of every change.
"""

from vblk.graph.node import Buffer, Node, Preallocation


class Unwritable(Node):
    """A node that is read only from its first to its last moment."""

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Refuse."""
        self.require_writable()

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Refuse."""
        self.require_writable()

    async def discard(self, offset: int, length: int) -> None:
        """Refuse."""
        self.require_writable()

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Refuse."""
        self.require_writable()
