"""A node that shows a byte other than the one that was written.

Owns: the class of such a node.
"""

from vblk.graph.node import Node


def let_lie(node: Node, offset: int) -> None:
    """Let a node show a wrong byte at an offset from now on, to those who read into a buffer."""
    honest = type(node)

    async def read_into(self: Node, start: int, buffer: memoryview) -> None:
        await honest.read_into(self, start, buffer)
        if start <= offset < start + len(buffer):
            buffer[offset - start] ^= 0x40

    node.__class__ = type(honest.__name__, (honest,), {"read_into": read_into})
