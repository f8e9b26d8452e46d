"""Units and the two kinds of offset.

Owns: the byte units, and the types that keep a guest offset from being used as
a file offset. Both are plain integers at run time.
"""

from typing import NewType

GuestOffset = NewType("GuestOffset", int)
"""Bytes from the start of the disk that a guest sees."""

FileOffset = NewType("FileOffset", int)
"""Bytes from the start of the node that stores an image."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
PIB = 1 << 50
EIB = 1 << 60

OFFSET_MAX = (1 << 63) - 1
"""The greatest offset that any node accepts, as for `off_t`."""


def align_down(value: int, alignment: int) -> int:
    """Return the greatest multiple of `alignment` that is at most `value`."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Return the least multiple of `alignment` that is at least `value`."""
    return -(-value // alignment) * alignment


def is_power_of_two(value: int) -> bool:
    """Tell whether `value` is 1, 2, 4, 8, ..."""
    return value > 0 and value & (value - 1) == 0
