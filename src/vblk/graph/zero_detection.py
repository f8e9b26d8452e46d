"""Nodes that look for zeros in what is written: the option `detect-zeroes`.

Owns: which writes become zero-writes. A node without the option pays nothing.
"""

from typing import ClassVar

from vblk.graph.kinds import Extra, add_extra, remove_extra
from vblk.graph.node import Buffer, Node
from vblk.units import MIB

_ZEROS = memoryview(bytes(MIB))


class ZeroDetecting(Extra):
    """What a node with the option does more than one without."""

    below_name: ClassVar[str] = "undetected"
    undetected: ClassVar[type[Node]]

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once what is not all zeros."""
        return not is_zero(data) and self.undetected.try_write(self, offset, data)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write, or make a range zeros where that is the same."""
        if len(data) and is_zero(data):
            unmap = self.detect_zeroes == "unmap"
            await self.write_zeroes(offset, len(data), unmap=unmap, fua=fua)
        else:
            await self.undetected.write(self, offset, data, fua=fua)


def set_detection(node: Node, mode: str) -> None:
    """Let a node look for zeros: "on", "unmap" to give their space back, or "off".

    Nothing may be in flight on it.
    """
    node.detect_zeroes = mode
    if mode == "off":
        remove_extra(node, ZeroDetecting)
    else:
        add_extra(node, ZeroDetecting)


def is_zero(data: Buffer) -> bool:
    """Tell whether bytes are all zeros; data mostly shows at its ends."""
    view = memoryview(data)
    if not view or view[0] or view[-1]:
        return not view
    return all(view[at : at + MIB] == _ZEROS[: min(MIB, len(view) - at)] for at in range(0, len(view), MIB))
