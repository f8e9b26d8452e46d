"""The free space of a VHDX file: `vblk.formats.space` in units of 1 MiB.

Owns: what is free at first, and how a file grows. It must not know blocks, nor
when anything becomes durable.

Source: [MS-VHDX] "BAT Entry" (uniqueness of file offsets).
"""

from collections.abc import Iterable

from vblk.codec.ranges import RangeSet
from vblk.formats import space
from vblk.formats.vhdx.bat import Reserved
from vblk.formats.vhdx.ownership import Owner, OwnershipTable
from vblk.units import GIB, MIB, align_down, align_up

EXTENSION_MIN = 32 * MIB
EXTENSION_MAX = GIB
"""A file grows by an eighth of its length, within these limits."""


class Space(space.Space):
    """The free space of one file.

    Args:
        owners: Who owns what, complete.
        reserved: Header area, log and regions.
        file_size: Length of the file in bytes, a multiple of 1 MiB.
        may_reuse: Without, what is free now is never used.
    """

    def __init__(
        self, owners: OwnershipTable, reserved: Iterable[Reserved], file_size: int, *, may_reuse: bool = True
    ) -> None:
        for item in reserved:
            start, end = align_down(item.start, MIB), align_up(item.end, MIB)
            if start < file_size:
                owners.cover(start, min(end, file_size) - start, Owner.STRUCTURE)
        stale = RangeSet()
        if may_reuse:
            for start, end in owners.free_ranges(0, file_size):
                stale.add(start, end)
        super().__init__(stale, file_size, MIB)

    def extension(self, length: int) -> int:
        """Return how long the file should become so that a range of `length` bytes is fresh."""
        step = min(max(self.file_size // 8, EXTENSION_MIN), EXTENSION_MAX)
        return self.file_size + align_up(max(step, length), MIB)
