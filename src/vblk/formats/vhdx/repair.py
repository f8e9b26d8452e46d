"""Repairing: what becomes of everything that the check finds.

Owns: for each finding whether it is repaired and how, and the bytes that
structures have afterwards. It must not read, write or wait: the shell is
`vblk.drivers.vhdx_repair`.

The rules behind the choices:
- What reads well before reads the same after.
- A block is given up, and reads as zeros, only where its data is nowhere in the
  file. While it may still be there nothing is decided: the block is left, and
  `vblk convert --salvage` makes a copy without it.
- Who of two blocks owns a place cannot be told, so each gets the bytes it shows.
- The file is not made longer while something names space beyond its end: it
  would become data that nobody wrote.

Source: [MS-VHDX] "Region Table", "Metadata Region", "BAT", "Payload BAT Entry
States", "Sector Bitmap BAT Entry States".
"""

import enum
from collections.abc import Iterable
from typing import NamedTuple

from vblk.codec.guid import Guid
from vblk.codec.ranges import RangeSet
from vblk.formats.vhdx.bat import State
from vblk.formats.vhdx.check import Flaw
from vblk.formats.vhdx.encode import (
    encode_file_parameters,
    encode_metadata_table,
    encode_region_table,
    encode_sector_size,
)
from vblk.formats.vhdx.image import VhdxImage
from vblk.formats.vhdx.layout import (
    BAT_OFFSET_MASK,
    BAT_RESERVED_MASK,
    BAT_STATE_MASK,
    ITEM_FILE_PARAMETERS,
    ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR_SIZE,
    ITEM_VIRTUAL_DISK_ID,
    METADATA_TABLE_SIZE,
    SECTOR_BITMAP_SIZE,
    TABLE_ENTRIES_MAX,
)
from vblk.formats.vhdx.metadata import MetadataItem

HEADER_CODES = frozenset(("H3", "H4", "H6", "H9"))
LOG_PLACE_CODES = frozenset(("H12", "H15"))
REGION_CODES = frozenset(("T1", "T2", "T4", "T17"))
METADATA_CODES = frozenset(("T17", "M3", "M14", "M23", "M26"))
VISIBLE_METADATA_CODES = frozenset(("M3", "M23"))
"""These change what a guest is told of its disk."""

HARMLESS_BESIDE_A_LOST_LOG = frozenset(("L2", "H3", "H4", "T1", "T2", "M3"))
"""Errors that do not speak against a log that was never used: what it would have changed is sound."""

SALVAGE = "'vblk convert --salvage' makes a copy with zeros in its place"

_NO_LOG_ROOM = "a log would have to be added at the file's end, and something names space beyond it"
_NO_COPY_ROOM = "a copy would need space at the file's end, and something names space beyond it"
_NO_EXTENSION = "the file would have to be made longer, and something names space beyond its end"
_BITMAP = f"which sectors of the chunk's blocks are in this file is not known without it; {SALVAGE}"
_LEFT = {
    "L2": "what the log held is gone and the image is damaged: which state is meant cannot be known; "
    "'vblk convert --salvage' makes a copy of what is there",
    "H12": _NO_LOG_ROOM,
    "H15": _NO_LOG_ROOM,
    "H18": "without a header that can be replaced nothing can be changed; 'vblk convert' makes a copy",
    "T8": "the file would have to be made longer by what the region held",
    "M3": "the metadata region has no room for the item",
    "B1": f"what the block's state was cannot be known, and its data may be where it says; {SALVAGE}",
    "B4": f"part of the block's data may be where it says; {SALVAGE}",
    "B6": _NO_EXTENSION,
    "B7": _NO_EXTENSION,
    "B9": _NO_COPY_ROOM,
    "B10": _NO_COPY_ROOM,
    "B15": _BITMAP,
    "B16": _BITMAP,
    "B17": _NO_COPY_ROOM,
    "B22": "overlaps are not looked for there",
}
LEAKS_LAST = "leaks are given back when nothing else is wrong: '-r all' first"
_OTHERS_FIRST = "what stands before it has to be repaired first"


class Remedy(enum.Enum):
    """What is done about a flaw of a BAT entry."""

    REPLACE = "replace"
    """The entry becomes another."""
    EXTEND = "extend"
    """The file becomes longer, so that the block is in it."""
    MOVE = "move"
    """What is at the place is copied to a new one."""
    LEAVE = "leave"
    """Nothing."""


class Mend(NamedTuple):
    """What becomes of one BAT entry.

    `entry` is the new one for REPLACE, the present one else. `lost` are bytes of
    the disk that were errors and are zeros from now on. `message` says it all.
    """

    remedy: Remedy
    entry: int
    message: str
    lost: int = 0


def is_bitmap_index(image: VhdxImage, index: int) -> bool:
    """Tell whether a BAT index is that of a chunk's sector bitmap."""
    ratio = image.geometry.chunk_ratio
    return index % (ratio + 1) == ratio


def owned_size(image: VhdxImage, index: int) -> int:
    """Return how many bytes of the file the entry of that index owns, when it is present."""
    return SECTOR_BITMAP_SIZE if is_bitmap_index(image, index) else image.block_size


def mend(image: VhdxImage, flaw: Flaw, entry: int) -> Mend:
    """Decide about one flaw.

    Args:
        image: As loaded; its log is empty.
        flaw: What the check found.
        entry: The BAT entry in question, as it is now.
    """
    if flaw.code in ("B9", "B10", "B17"):
        return Mend(Remedy.MOVE, entry, f"{_name(image, flaw.entry)} has its own copy of what it read")
    if flaw.code == "B20":
        return Mend(Remedy.REPLACE, 0, f"entry {flaw.entry} of the BAT, which is no block's, is 0")
    if is_bitmap_index(image, flaw.entry):
        return _mend_bitmap(image, flaw, entry)
    return _mend_payload(image, flaw, entry)


def _name(image: VhdxImage, index: int) -> str:
    number, position = divmod(index, image.geometry.chunk_ratio + 1)
    if is_bitmap_index(image, index):
        return f"the sector bitmap of chunk {number}"
    return f"block {number * image.geometry.chunk_ratio + position}"


def _mend_bitmap(image: VhdxImage, flaw: Flaw, entry: int) -> Mend:
    name = _name(image, flaw.entry)
    if flaw.code == "B2":
        return Mend(Remedy.REPLACE, entry & ~BAT_RESERVED_MASK, f"reserved bits of {name} are clear")
    if flaw.code in ("B12", "B14"):
        return Mend(Remedy.REPLACE, 0, f"{name}, which does not exist, names no place")
    if not flaw.needed:
        return Mend(Remedy.REPLACE, 0, f"{name}, which no block needs, is not present")
    return Mend(Remedy.LEAVE, entry, "")


def _mend_payload(image: VhdxImage, flaw: Flaw, entry: int) -> Mend:
    name = _name(image, flaw.entry)
    place = entry & BAT_OFFSET_MASK
    if flaw.code == "B2":
        return Mend(Remedy.REPLACE, entry & ~BAT_RESERVED_MASK, f"reserved bits of {name}'s entry are clear")
    if flaw.code == "B11":
        return Mend(Remedy.REPLACE, place | State.FULLY_PRESENT, f"{name} is fully present")
    if flaw.code in ("B12", "B13"):
        return Mend(Remedy.REPLACE, entry & BAT_STATE_MASK, f"{name}, which has no data, names no place")
    if flaw.code == "B7":
        return Mend(Remedy.EXTEND, entry, f"the file reaches to the end of {name}")
    if flaw.code == "B6":
        return _extend(image, flaw.entry, entry)
    if _may_have_data(image, flaw.entry, entry):
        return Mend(Remedy.LEAVE, entry, "")
    block = flaw.entry - flaw.entry // (image.geometry.chunk_ratio + 1)
    size = image.geometry.bytes_of_block(block)
    start = block << image.geometry.block_shift
    message = f"the data of {name} is not in the file: {size} bytes of the disk from {start} on are zeros now"
    return Mend(Remedy.REPLACE, State.ZERO, message, size)


def _extend(image: VhdxImage, index: int, entry: int) -> Mend:
    """Make a block whole that was cut off with the file."""
    geometry = image.geometry
    block = index - index // (geometry.chunk_ratio + 1)
    kept = image.file_size - (entry & BAT_OFFSET_MASK)
    lost = geometry.bytes_of_block(block) - kept
    start = (block << geometry.block_shift) + kept
    message = (
        f"block {block} was cut off with the file: {lost} bytes of the disk from {start} on are zeros now"
    )
    return Mend(Remedy.EXTEND, entry, message, lost)


def _may_have_data(image: VhdxImage, index: int, entry: int) -> bool:
    """Tell whether any of a damaged block's data could be at the place that its entry names."""
    place, size = entry & BAT_OFFSET_MASK, image.block_size
    if place == 0 or place >= image.placement.file_size:
        return False
    taken = sum(
        max(0, min(item.end, place + size) - max(item.start, place)) for item in image.placement.reserved
    )
    return taken < size


def why_left(image: VhdxImage, code: str, flaw: Flaw | None) -> str:
    """Return the reason why a finding is still there after the repair."""
    if flaw is not None and code in ("B3", "B4", "B5", "B6", "B8") and is_bitmap_index(image, flaw.entry):
        return _BITMAP
    return _LEFT.get(code, _OTHERS_FIRST)


def longest_end(image: VhdxImage, entries: Iterable[tuple[int, int]]) -> int:
    """Return the file offset at which the last of (index, entry) ends."""
    return max((entry & BAT_OFFSET_MASK) + owned_size(image, index) for index, entry in entries)


def names_space_beyond(image: VhdxImage, codes: Iterable[str], flaws: Iterable[Flaw]) -> bool:
    """Tell whether something names space beyond the file's end, so that it must not grow.

    A payload block of which a part is in the file does not count: what is missing is added.
    """
    if "T8" in codes:
        return True
    return any(
        flaw.code in ("B5", "B8") or (flaw.code == "B6" and is_bitmap_index(image, flaw.entry))
        for flaw in flaws
    )


def mended_regions(image: VhdxImage) -> bytes:
    """Return the region table, 64 KiB, that both copies should be."""
    return encode_region_table(sorted(image.regions.all(), key=lambda region: region.entry_offset))


def mended_metadata(image: VhdxImage, disk_id: Guid) -> list[tuple[int, bytes]] | None:
    """Return what is to be written, (file offset, bytes), so that table and items are right.

    Args:
        image: As loaded.
        disk_id: The disk's identity, should it have none.

    Returns: None if there is no room for an item that is missing.
    """
    facts, region = image.facts, image.regions.metadata
    items = sorted((*image.items.known.values(), *image.unknown_items), key=lambda item: item.entry_offset)
    if not facts.has_parent:
        items = [item for item in items if not (item.known and item.item_id == ITEM_PARENT_LOCATOR)]
    content = {
        ITEM_FILE_PARAMETERS: encode_file_parameters(
            facts.block_size,
            leave_blocks_allocated=facts.leave_blocks_allocated,
            has_parent=facts.has_parent,
        ),
        ITEM_PHYSICAL_SECTOR_SIZE: encode_sector_size(facts.physical_sector_size),
        ITEM_VIRTUAL_DISK_ID: bytes(disk_id),
    }
    free = RangeSet()
    free.add(METADATA_TABLE_SIZE, region.length)
    for item in items:
        free.remove(item.offset, item.offset + item.length)
    writes: list[tuple[int, bytes]] = []
    for item_id, data in content.items():
        present = image.items.known.get(item_id)
        if present is not None and item_id == ITEM_VIRTUAL_DISK_ID:
            continue
        if present is None:
            place = free.first_fit(len(data))
            if place is None or len(items) >= TABLE_ENTRIES_MAX:
                return None
            free.remove(place, place + len(data))
            present = MetadataItem(item_id, place, len(data), False, True, True, 0)
            items.append(present)
        writes.append((region.file_offset + present.offset, data))
    return [(region.file_offset, encode_metadata_table(items)), *writes]
