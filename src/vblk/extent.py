"""Extents: how a format answers "where are these guest bytes?".

Owns: the vocabulary between a format, which knows where bytes are, and the
data plane, which moves them. It knows neither of the two.
"""

import enum
from dataclasses import dataclass

from vblk.units import FileOffset, GuestOffset


class Kind(enum.IntEnum):
    """What stands behind a range of guest bytes."""

    DATA = 0
    """The bytes are in the image's file, unchanged, at `file_offset`."""
    ZERO = 1
    """The bytes read as zeros, whatever a backing image holds."""
    ABSENT = 2
    """This image says nothing: the backing image answers, or else zeros."""
    ENCODED = 3
    """The bytes are in the image's file, compressed or encrypted."""


@dataclass(slots=True)
class Extent:
    """One run of guest bytes that a format answers for in one way.

    `length` is in bytes and greater than 0. `file_offset` is set for DATA and
    ENCODED only; it counts in the format's `file` child.
    """

    kind: Kind
    guest_offset: GuestOffset
    length: int
    file_offset: FileOffset | None = None


@dataclass(slots=True)
class Missing:
    """Metadata that a lookup needs and that is not in memory.

    `ranges` are (file offset, length) in bytes. The caller loads and pins all
    of them, then asks again.
    """

    ranges: list[tuple[FileOffset, int]]


def append_extent(extents: list[Extent], extent: Extent) -> None:
    """Add an extent to a gapless list, growing the last one where it continues it."""
    if extents:
        last = extents[-1]
        if last.kind is extent.kind and (
            extent.file_offset is None
            or (
                extent.kind is Kind.DATA
                and last.file_offset is not None
                and last.file_offset + last.length == extent.file_offset
            )
        ):
            last.length += extent.length
            return
    extents.append(extent)
