"""The block allocation table: its geometry, its entries, and when one is damaged.

Owns: where the entry of a block is, what it says, and the rules that a block's
place must keep. It must not know guest ranges or how pages are loaded.

    An entry is a u64:  bits 0-2 state, 3-19 reserved, 20-63 file offset in MiB.

    After every `chunk_ratio` payload entries stands one entry for the sector
    bitmap of that chunk, whatever the type of the image:

    | block 0 | block 1 | ... | block ratio-1 | bitmap 0 | block ratio | ...

Source: [MS-VHDX] "BAT", "BAT Entry", "Payload BAT Entry States",
"Sector Bitmap BAT Entry States".
"""

import enum
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from vblk.errors import Reason
from vblk.formats.vhdx.layout import (
    BAT_ENTRY_SIZE,
    BAT_OFFSET_MASK,
    BAT_STATE_MASK,
    CHUNK_SECTORS,
    SECTOR_BITMAP_SIZE,
)
from vblk.units import OFFSET_MAX


class State(enum.IntEnum):
    """What a payload entry says of its block."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


RESERVED_STATES = (4, 5)
BITMAP_PRESENT = 6
"""The one state of a sector-bitmap entry beside 0, not present."""


class Geometry:
    """The arithmetic of one image's BAT; all sizes are powers of two but the disk's.

    Args:
        virtual_size: Bytes of the disk, > 0.
        block_size: Bytes of a block.
        sector_size: Bytes of a logical sector.
        differencing: Whether the image has a parent.
        bat_offset: File offset of the BAT region.
        bat_length: Its length in bytes.

    Source: [MS-VHDX] "BAT".
    """

    __slots__ = (
        "bat_length",
        "bat_offset",
        "bitmap_blocks",
        "block_shift",
        "block_size",
        "chunk_ratio",
        "chunk_shift",
        "differencing",
        "entries",
        "payload_blocks",
        "sector_shift",
        "sector_size",
        "virtual_size",
    )

    def __init__(
        self,
        virtual_size: int,
        block_size: int,
        sector_size: int,
        differencing: bool,
        bat_offset: int,
        bat_length: int,
    ) -> None:
        self.virtual_size = virtual_size
        self.block_size = block_size
        self.sector_size = sector_size
        self.differencing = differencing
        self.bat_offset = bat_offset
        self.bat_length = bat_length
        self.block_shift = block_size.bit_length() - 1
        self.sector_shift = sector_size.bit_length() - 1
        self.chunk_ratio = CHUNK_SECTORS * sector_size // block_size
        self.chunk_shift = self.chunk_ratio.bit_length() - 1
        self.payload_blocks = -(-virtual_size // block_size)
        self.bitmap_blocks = -(-self.payload_blocks // self.chunk_ratio)
        if differencing:
            self.entries = self.bitmap_blocks * (self.chunk_ratio + 1)
        else:
            self.entries = self.payload_blocks + (self.payload_blocks - 1) // self.chunk_ratio

    def payload_index(self, block: int) -> int:
        """Return the index of a block's entry."""
        return block + (block >> self.chunk_shift)

    def bitmap_index(self, chunk: int) -> int:
        """Return the index of a chunk's sector-bitmap entry."""
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio

    def entry_offset(self, index: int) -> int:
        """Return the file offset of an entry."""
        return self.bat_offset + index * BAT_ENTRY_SIZE

    def bytes_of_block(self, block: int) -> int:
        """Return how many bytes of a block belong to the disk: fewer in the last one."""
        return min(self.block_size, self.virtual_size - block * self.block_size)


def entry_state(entry: int) -> int:
    """Return bits 0-2 of an entry."""
    return entry & BAT_STATE_MASK


def entry_file_offset(entry: int) -> int:
    """Return the file offset in an entry, in bytes; it may be anything."""
    return entry & BAT_OFFSET_MASK


class Fault(NamedTuple):
    """Why a block cannot be read; `code` is the row of the table of bad inputs."""

    code: str
    reason: Reason
    message: str


class Reserved(NamedTuple):
    """A range of the file that no block may touch."""

    start: int
    end: int
    name: str


class Placement:
    """Where blocks may lie.

    Args:
        reserved: Header area, log and regions, known or not.
        file_size: Length of the file in bytes, as the log leaves it.
    """

    __slots__ = ("file_size", "floor", "reserved")

    def __init__(self, reserved: Sequence[Reserved], file_size: int) -> None:
        self.reserved = tuple(sorted(reserved, key=lambda item: item.start))
        self.file_size = file_size
        self.floor = max((item.end for item in self.reserved), default=0)
        """From this file offset on nothing is reserved: most blocks lie here."""

    def fault(self, what: str, offset: int, size: int, needed: int) -> Fault | None:
        """Judge the place of a block.

        Args:
            what: The block's name for the message.
            offset: Its file offset, a multiple of 1 MiB.
            size: Bytes that it owns there.
            needed: Bytes, from its start, that the disk needs.
        """
        if offset == 0:
            return Fault("B3", Reason.BAD_VALUE, f"{what} is said to be present and has no place in the file")
        if offset > OFFSET_MAX - size:
            return Fault("B8", Reason.OUT_OF_FILE, f"{what} lies at {offset:#x}, which no file reaches")
        if offset < self.floor:
            for item in self.reserved:
                if offset < item.end and item.start < offset + size:
                    return Fault(
                        "B4",
                        Reason.OVERLAP,
                        f"{what} at {offset:#x} overlaps the {item.name} at {item.start:#x}",
                    )
        if offset >= self.file_size:
            return Fault(
                "B5",
                Reason.OUT_OF_FILE,
                f"{what} lies at {offset:#x}, beyond the file's end at {self.file_size:#x}",
            )
        if offset + needed > self.file_size:
            return Fault(
                "B6",
                Reason.OUT_OF_FILE,
                f"{what} reaches from {offset:#x} to {offset + needed:#x}, beyond the file's end at "
                f"{self.file_size:#x}",
            )
        return None


def payload_fault(geometry: Geometry, placement: Placement, block: int, entry: int) -> Fault | None:
    """Say why a block cannot be read from its entry, or None."""
    state = entry & BAT_STATE_MASK
    if state in RESERVED_STATES:
        return Fault("B1", Reason.BAD_VALUE, f"block {block} has the state {state}, which is reserved")
    if state < State.FULLY_PRESENT:
        return None
    return placement.fault(
        f"block {block}", entry & BAT_OFFSET_MASK, geometry.block_size, geometry.bytes_of_block(block)
    )


def bitmap_fault(placement: Placement, chunk: int, entry: int) -> Fault | None:
    """Say why a chunk's sector bitmap cannot be read from its entry, or None.

    The caller needs the bitmap: a block of the chunk is partially present.
    """
    state = entry & BAT_STATE_MASK
    what = f"the sector bitmap of chunk {chunk}"
    if state == 0:
        return Fault(
            "B15",
            Reason.MISSING_ITEM,
            f"{what} is not present, and a block of the chunk is partially present",
        )
    if state != BITMAP_PRESENT:
        return Fault("B16", Reason.BAD_VALUE, f"{what} has the state {state}; it must be 0 or 6")
    return placement.fault(what, entry & BAT_OFFSET_MASK, SECTOR_BITMAP_SIZE, SECTOR_BITMAP_SIZE)


ENTRIES_SINGLY = 16
"""A run of more entries that are not all alike is divided: parts of it mostly are."""


def is_progression(raw: bytes, step: int) -> bool:
    """Tell whether entries, side by side in `raw`, rise by `step` bytes each.

    They are compared as one integer with the progression that they would be:
    two multiplications instead of a step for every block.
    """
    count = len(raw) // BAT_ENTRY_SIZE
    first = int.from_bytes(raw[:BAT_ENTRY_SIZE], "little")
    ones, ramp = _progression(count)
    return int.from_bytes(raw, "little") == first * ones + step * ramp


@cache
def _progression(count: int) -> tuple[int, int]:
    """Return integers whose 64-bit words are 1, 1, 1, ... and 0, 1, 2, ..."""
    ones = b"".join((1).to_bytes(BAT_ENTRY_SIZE, "little") for _ in range(count))
    ramp = b"".join(word.to_bytes(BAT_ENTRY_SIZE, "little") for word in range(count))
    return int.from_bytes(ones, "little"), int.from_bytes(ramp, "little")
