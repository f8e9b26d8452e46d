"""New images: everything that a fresh VHDX file consists of, and in which order.

Owns: the choices behind a new file, their limits, its layout, and the stages in
which it is written. It must not write: a shell carries the stages out.

Ordering rule: each stage is on stable storage before the next begins.
1. everything but headers and identifier; the metadata table has the marker
   "unfinished", which every reader must refuse,
2. headers and identifier,
3. the metadata table, without the marker.
So a crash leaves a file that is not VHDX, one that is refused as unfinished, or
the complete empty disk. The marker is the table's last entry: when the third
stage is torn, the table either still has it, or counts an entry that is all
zeros, which every reader refuses too, or does not reach to it any more.

    file offset of a new file
    0          identifier, headers, region tables
    1 MiB      log
    ...        metadata region, 1 MiB
    ...        BAT region
    ...        blocks, in a fixed image: all of them, in order

Source: [MS-VHDX] "Layout", "Known Metadata Items".
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vblk.codec.guid import ZERO_GUID, Guid, new_guid
from vblk.errors import OptionError
from vblk.formats.vhdx.bat import Geometry, State
from vblk.formats.vhdx.encode import (
    encode_file_parameters,
    encode_header,
    encode_identifier,
    encode_locator,
    encode_metadata_table,
    encode_region_table,
    encode_sector_size,
    encode_virtual_size,
)
from vblk.formats.vhdx.header import LOG_VERSION, VERSION, Header
from vblk.formats.vhdx.layout import (
    BAT_ENTRY_SIZE,
    BLOCK_SIZE_MAX,
    BLOCK_SIZE_MIN,
    HEADER_OFFSETS,
    ITEM_FILE_PARAMETERS,
    ITEM_LOGICAL_SECTOR_SIZE,
    ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR_SIZE,
    ITEM_UNFINISHED,
    ITEM_VIRTUAL_DISK_ID,
    ITEM_VIRTUAL_DISK_SIZE,
    METADATA_TABLE_SIZE,
    PAGE_SIZE,
    REGION_BAT,
    REGION_METADATA,
    REGION_TABLE_OFFSETS,
    SECTOR_SIZES,
    VIRTUAL_SIZE_MAX,
)
from vblk.formats.vhdx.locator import KEY_LINKAGE
from vblk.formats.vhdx.metadata import MetadataItem
from vblk.formats.vhdx.region import Region
from vblk.units import GIB, MIB, TIB, align_up, is_power_of_two

LOG_SIZE_DEFAULT = MIB
METADATA_REGION_SIZE = MIB
DIFFERENCING_BLOCK_SIZE = 2 * MIB
CREATOR = "vblk"

_BLOCK_SIZES = ((32 * TIB, 64 * MIB), (100 * GIB, 32 * MIB), (GIB, 16 * MIB), (0, 8 * MIB))
"""From more than so many bytes of disk on: so large are blocks that nobody chose the size of."""

_PIECE = MIB


@dataclass(frozen=True, slots=True)
class ParentFacts:
    """What a child takes over from its parent, and how it names it.

    `paths` are the locator's path keys and values. `items` are the parent's
    further metadata items that describe the disk, with their content.
    """

    data_write_guid: Guid
    disk_id: Guid
    size: int
    logical_sector_size: int
    physical_sector_size: int
    paths: Mapping[str, str]
    items: tuple[tuple[MetadataItem, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class NewVhdx:
    """A VHDX image to be made; all sizes in bytes, None: chosen.

    `size` None is the parent's. `fixed` has all blocks from the start. Without
    `block_state_zero` the blocks of a dynamic image are "not present" rather
    than "zero": both read as zeros. `parent` makes it a differencing image.
    """

    size: int | None = None
    block_size: int | None = None
    log_size: int = LOG_SIZE_DEFAULT
    fixed: bool = False
    block_state_zero: bool = True
    logical_sector_size: int | None = None
    physical_sector_size: int | None = None
    disk_id: Guid | None = None
    parent: ParentFacts | None = None
    creator: str = CREATOR


@dataclass(frozen=True, slots=True)
class Stage:
    """Writes, (file offset, bytes), that all are stable before the next stage begins."""

    writes: Iterable[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Creation:
    """How a new file is made: grow it from nothing to `length` bytes, then the stages.

    `size` is the disk's, in bytes, and `block_size` that of its blocks.
    """

    size: int
    block_size: int
    length: int
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class _Choices:
    """A `NewVhdx` whose every field is decided and within its limits."""

    size: int
    block_size: int
    log_size: int
    fixed: bool
    block_state_zero: bool
    logical_sector_size: int
    physical_sector_size: int
    disk_id: Guid
    parent: ParentFacts | None
    creator: str


def plan_creation(new: NewVhdx) -> Creation:
    """Plan a new image.

    Raises:
        OptionError: A size is outside its limits, or contradicts the parent's.
    """
    return _Layout(_decide(new)).creation()


def finished_table(table: bytes) -> bytes | None:
    """Return a metadata table without the marker of an unfinished image, or None: it has none.

    Args:
        table: The 64 KiB at the start of the metadata region, sound.
    """
    items = [table[at : at + 32] for at in range(32, 32 + 32 * int.from_bytes(table[10:12], "little"), 32)]
    kept = [item for item in items if item[:16] != ITEM_UNFINISHED]
    if len(kept) == len(items):
        return None
    head = table[:10] + len(kept).to_bytes(2, "little") + table[12:32]
    return (head + b"".join(kept)).ljust(len(table), b"\0")


def default_block_size(size: int) -> int:
    """Return the block size, in bytes, of a disk of `size` bytes without a parent."""
    return next(block_size for above, block_size in _BLOCK_SIZES if size > above)


def _decide(new: NewVhdx) -> _Choices:
    parent = new.parent
    logical = new.logical_sector_size
    physical = new.physical_sector_size
    if logical is None:
        logical = 512 if parent is None else parent.logical_sector_size
    if physical is None:
        physical = max(SECTOR_SIZES) if parent is None else parent.physical_sector_size
    for name, size in (("logical", logical), ("physical", physical)):
        if size not in SECTOR_SIZES:
            raise OptionError(f"the {name} sector size is {size}; it must be 512 or 4096")
    if parent is not None and logical != parent.logical_sector_size:
        raise OptionError(
            f"the logical sector size is {logical}; it must be the parent's, {parent.logical_sector_size}"
        )
    if parent is not None and new.fixed:
        raise OptionError("a differencing image cannot be fixed")
    size = _decide_size(new, logical)
    block_size = new.block_size
    if block_size is None:
        block_size = default_block_size(size) if parent is None else DIFFERENCING_BLOCK_SIZE
    _check_block_size(block_size)
    _check_log_size(new.log_size)
    disk_id = new.disk_id or (new_guid() if parent is None else parent.disk_id)
    return _Choices(
        size,
        block_size,
        new.log_size,
        new.fixed,
        new.block_state_zero,
        logical,
        physical,
        disk_id,
        parent,
        new.creator,
    )


def _decide_size(new: NewVhdx, sector_size: int) -> int:
    size = new.size
    if size is None:
        if new.parent is None:
            raise OptionError("Image creation needs a size parameter")
        size = new.parent.size
    if size > VIRTUAL_SIZE_MAX:
        raise OptionError("Image size too large; max of 64TB")
    if size <= 0:
        raise OptionError("a VHDX image cannot be empty: its size must be more than 0")
    if size % sector_size:
        raise OptionError(f"the image size {size} is not a multiple of its {sector_size}-byte sectors")
    return size


def _check_block_size(size: int) -> None:
    if size % MIB:
        raise OptionError("Block size must be a multiple of 1 MB")
    if not is_power_of_two(size):
        raise OptionError("Block size must be a power of two")
    if not BLOCK_SIZE_MIN <= size <= BLOCK_SIZE_MAX:
        raise OptionError(f"Block size must not exceed {BLOCK_SIZE_MAX}")


def _check_log_size(size: int) -> None:
    if size >= 4 * GIB:
        raise OptionError("Log size must be smaller than 4 GB")
    if size <= 0 or size % MIB:
        raise OptionError("Log size must be a multiple of 1 MB")


class _Layout:
    """Places the structures of one new file."""

    def __init__(self, choices: _Choices) -> None:
        self._choices = choices
        geometry = Geometry(
            choices.size,
            choices.block_size,
            choices.logical_sector_size,
            choices.parent is not None,
            0,
            0,
        )
        self._geometry = geometry
        self._log_offset = MIB
        self._metadata_offset = self._log_offset + choices.log_size
        self._bat_offset = self._metadata_offset + METADATA_REGION_SIZE
        self._bat_length = align_up(geometry.entries * BAT_ENTRY_SIZE, MIB)
        self._data_offset = self._bat_offset + self._bat_length

    def creation(self) -> Creation:
        """Return the whole plan."""
        length = self._data_offset
        if self._choices.fixed:
            length += self._geometry.payload_blocks * self._choices.block_size
        items, content = self._items()
        marker = MetadataItem(ITEM_UNFINISHED, 0, 0, False, False, True, 0)
        unfinished = encode_metadata_table([*items, marker])
        finished = encode_metadata_table(items)[: align_up(32 + 32 * (len(items) + 1), PAGE_SIZE)]
        return Creation(
            self._choices.size,
            self._choices.block_size,
            length,
            (
                Stage(self._body(unfinished, content)),
                Stage(self._identity()),
                Stage([(self._metadata_offset, finished)]),
            ),
        )

    def _body(self, metadata_table: bytes, content: bytes) -> Iterator[tuple[int, bytes]]:
        regions = encode_region_table(
            (
                Region(REGION_BAT, self._bat_offset, self._bat_length, True, 0),
                Region(REGION_METADATA, self._metadata_offset, METADATA_REGION_SIZE, True, 0),
            )
        )
        for at in REGION_TABLE_OFFSETS:
            yield at, regions
        yield self._metadata_offset, metadata_table
        yield self._metadata_offset + METADATA_TABLE_SIZE, content
        at = self._bat_offset
        for piece in self._bat():
            yield at, piece
            at += len(piece)

    def _identity(self) -> Iterator[tuple[int, bytes]]:
        first = Header(
            HEADER_OFFSETS[0],
            1,
            new_guid(),
            new_guid(),
            ZERO_GUID,
            LOG_VERSION,
            VERSION,
            self._choices.log_size,
            self._log_offset,
        )
        second = first._replace(file_offset=HEADER_OFFSETS[1], sequence_number=2)
        for each in (first, second):
            yield each.file_offset, encode_header(each)
        yield 0, encode_identifier(self._choices.creator)

    def _items(self) -> tuple[list[MetadataItem], bytes]:
        """Return the items of the finished image, and their content, which follows the table."""
        choices = self._choices
        parent = choices.parent
        parameters = encode_file_parameters(
            choices.block_size, leave_blocks_allocated=choices.fixed, has_parent=parent is not None
        )
        wanted = [
            (_item(ITEM_FILE_PARAMETERS, is_virtual_disk=False), parameters),
            (_item(ITEM_VIRTUAL_DISK_SIZE), encode_virtual_size(choices.size)),
            (_item(ITEM_VIRTUAL_DISK_ID), bytes(choices.disk_id)),
            (_item(ITEM_LOGICAL_SECTOR_SIZE), encode_sector_size(choices.logical_sector_size)),
            (_item(ITEM_PHYSICAL_SECTOR_SIZE), encode_sector_size(choices.physical_sector_size)),
        ]
        if parent is not None:
            pairs = {KEY_LINKAGE: str(parent.data_write_guid), **parent.paths}
            wanted.append((_item(ITEM_PARENT_LOCATOR, is_virtual_disk=False), encode_locator(pairs)))
            wanted += parent.items
        items: list[MetadataItem] = []
        content = bytearray()
        for item, data in wanted:
            place = METADATA_TABLE_SIZE + len(content) if data else 0
            items.append(item._replace(offset=place, length=len(data)))
            content += data
        if METADATA_TABLE_SIZE + len(content) > METADATA_REGION_SIZE:
            raise OptionError("the parent's metadata items do not fit into a new image")
        return items, bytes(content).ljust(align_up(len(content), PAGE_SIZE), b"\0")

    def _bat(self) -> Iterator[bytes]:
        """Yield the BAT in pieces of about 1 MiB, nothing where all of it is zeros."""
        choices = self._choices
        if not choices.fixed and (choices.parent is not None or not choices.block_state_zero):
            return
        geometry = self._geometry
        piece = bytearray()
        for first in range(0, geometry.payload_blocks, geometry.chunk_ratio):
            count = min(geometry.chunk_ratio, geometry.payload_blocks - first)
            piece += self._entries(first, count)
            if first + count < geometry.payload_blocks:
                piece += bytes(BAT_ENTRY_SIZE)
            if len(piece) >= _PIECE:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    def _entries(self, first: int, count: int) -> bytes:
        if not self._choices.fixed:
            return int(State.ZERO).to_bytes(BAT_ENTRY_SIZE, "little") * count
        size = self._choices.block_size
        start = self._data_offset + first * size + State.FULLY_PRESENT
        entries = array("Q", range(start, start + count * size, size))
        if sys.byteorder == "big":
            entries.byteswap()
        return entries.tobytes()


def _item(item_id: Guid, *, is_virtual_disk: bool = True) -> MetadataItem:
    return MetadataItem(item_id, 0, 0, False, is_virtual_disk, True, 0)
