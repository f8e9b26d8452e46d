"""The metadata region: the table of items, and the items that describe the disk.

Owns: parsing and judging. It must not know how bytes are read: `parse_table`
says which items there are, the caller brings their bytes.

Source: [MS-VHDX] "Metadata Region", "Known Metadata Items".
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from vblk.codec.guid import ZERO_GUID, Guid
from vblk.codec.ranges import first_overlap
from vblk.errors import CorruptImage, Reason, UnsupportedFeature
from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.layout import (
    BLOCK_SIZE_MAX,
    BLOCK_SIZE_MIN,
    ITEM_FILE_PARAMETERS,
    ITEM_LOGICAL_SECTOR_SIZE,
    ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR_SIZE,
    ITEM_UNFINISHED,
    ITEM_VIRTUAL_DISK_ID,
    ITEM_VIRTUAL_DISK_SIZE,
    METADATA_ITEM_SIZE_MAX,
    METADATA_TABLE_SIZE,
    METADATA_USER_ENTRIES_MAX,
    SECTOR_SIZES,
    TABLE_ENTRIES_MAX,
    VIRTUAL_SIZE_MAX,
)
from vblk.units import is_power_of_two

SIGNATURE = b"metadata"

TABLE_RECORD = struct.Struct("<8sHH20s")
"""
      0   8  "metadata"
      8   2  reserved
     10   2  count of entries, at most 2047
     12  20  reserved
"""

ENTRY_RECORD = struct.Struct("<16sIIII")
"""
      0  16  item id; unique together with bit 0 of the flags
     16   4  offset from the region's start, at least 64 KiB
     20   4  length, at most 1 MiB; 0: present and empty
     24   4  bit 0: user's, bit 1: describes the virtual disk, bit 2: required
     28   4  reserved
"""

_NAMES = {
    ITEM_FILE_PARAMETERS: "file parameters",
    ITEM_VIRTUAL_DISK_SIZE: "virtual disk size",
    ITEM_VIRTUAL_DISK_ID: "virtual disk id",
    ITEM_LOGICAL_SECTOR_SIZE: "logical sector size",
    ITEM_PHYSICAL_SECTOR_SIZE: "physical sector size",
    ITEM_PARENT_LOCATOR: "parent locator",
}

_LENGTHS = {
    ITEM_FILE_PARAMETERS: 8,
    ITEM_VIRTUAL_DISK_SIZE: 8,
    ITEM_VIRTUAL_DISK_ID: 16,
    ITEM_LOGICAL_SECTOR_SIZE: 4,
    ITEM_PHYSICAL_SECTOR_SIZE: 4,
}


class MetadataItem(NamedTuple):
    """One entry of the table.

    `offset` counts from the start of the metadata region; `entry_offset` is the
    file offset of the entry.
    """

    item_id: Guid
    offset: int
    length: int
    is_user: bool
    is_virtual_disk: bool
    is_required: bool
    entry_offset: int

    @property
    def known(self) -> bool:
        """Whether this version knows what the item says."""
        return not self.is_user and self.item_id in _NAMES

    @property
    def name(self) -> str:
        """The item's name for messages."""
        return _NAMES[self.item_id] if self.known else f"metadata item {self.item_id}"


class MetadataTable(NamedTuple):
    """The items of an image: the known ones by id, the others to be kept as they are."""

    known: Mapping[Guid, MetadataItem]
    unknown: tuple[MetadataItem, ...]
    findings: tuple[Finding, ...]


def parse_table(
    data: bytes, region_offset: int, region_length: int, *, unfinished: bool = False
) -> MetadataTable:
    """Parse the 64 KiB at the start of the metadata region.

    Args:
        data: The table.
        region_offset: File offset of the region.
        region_length: Its length in bytes.
        unfinished: Accept the marker of an image whose creation is under way.

    Raises:
        CorruptImage: The table or an entry is wrong.
        UnsupportedFeature: An item is required and unknown.
    """
    if len(data) != METADATA_TABLE_SIZE or data[:8] != SIGNATURE:
        raise CorruptImage(
            Reason.WRONG_SIGNATURE,
            "the metadata region does not start with the signature 'metadata'",
            offset=region_offset,
        )
    _, reserved, count, reserved_tail = TABLE_RECORD.unpack_from(data)
    if count > TABLE_ENTRIES_MAX:
        raise CorruptImage(
            Reason.LIMIT,
            f"the metadata table claims {count} entries; at most {TABLE_ENTRIES_MAX} fit",
            offset=region_offset + 10,
        )
    findings: list[Finding] = []
    if reserved or any(reserved_tail):
        findings.append(_reserved("the metadata table", region_offset))
    items: dict[tuple[Guid, bool], MetadataItem] = {}
    for index in range(count):
        at = 32 + 32 * index
        item_id, offset, length, flags, reserved = ENTRY_RECORD.unpack_from(data, at)
        item = MetadataItem(
            Guid(item_id),
            offset,
            length,
            bool(flags & 1),
            bool(flags & 2),
            bool(flags & 4),
            region_offset + at,
        )
        _check_item(item, region_length, unfinished)
        if (item.item_id, item.is_user) in items:
            raise CorruptImage(
                Reason.DUPLICATE, f"the metadata table names the {item.name} twice", offset=item.entry_offset
            )
        items[item.item_id, item.is_user] = item
        if flags & ~7 or reserved:
            findings.append(_reserved(f"the entry of the {item.name}", item.entry_offset))
    _check_together(items, region_offset)
    return MetadataTable(
        {item.item_id: item for item in items.values() if item.known},
        tuple(item for item in items.values() if not item.known),
        tuple(findings),
    )


def _reserved(where: str, offset: int) -> Finding:
    return Finding("T17", Severity.WARNING, f"reserved bits of {where} are set", offset)


def _check_item(item: MetadataItem, region_length: int, unfinished: bool) -> None:
    at = item.entry_offset
    if item.item_id == ZERO_GUID:
        raise CorruptImage(Reason.BAD_VALUE, "a metadata item has the id zero", offset=at)
    if item.item_id == ITEM_UNFINISHED and not item.is_user:
        if unfinished:
            return
        raise UnsupportedFeature(
            Reason.UNFINISHED, "the creation of this image was never finished", offset=at
        )
    if item.is_required and not item.known:
        raise UnsupportedFeature(
            Reason.UNKNOWN_REQUIRED, f"the {item.name} is required and not supported", offset=at
        )
    if item.length > METADATA_ITEM_SIZE_MAX:
        raise CorruptImage(
            Reason.LIMIT,
            f"the {item.name} has {item.length} bytes; an item has at most {METADATA_ITEM_SIZE_MAX}",
            offset=at + 20,
        )
    if item.length and item.offset < METADATA_TABLE_SIZE:
        raise CorruptImage(
            Reason.OVERLAP,
            f"the {item.name} at {item.offset:#x} lies inside the metadata table, which takes 64 KiB",
            offset=at + 16,
        )
    if item.length and item.offset + item.length > region_length:
        raise CorruptImage(
            Reason.OUT_OF_FILE,
            f"the {item.name} ends at {item.offset + item.length:#x}, beyond the metadata region's "
            f"{region_length:#x} bytes",
            offset=at + 16,
        )
    expected = _LENGTHS.get(item.item_id)
    if item.known and expected is not None and item.length != expected:
        raise CorruptImage(
            Reason.BAD_VALUE, f"the {item.name} has {item.length} bytes, not {expected}", offset=at + 20
        )


def _check_together(items: Mapping[tuple[Guid, bool], MetadataItem], region_offset: int) -> None:
    users = sum(item.is_user for item in items.values())
    if users > METADATA_USER_ENTRIES_MAX:
        raise CorruptImage(
            Reason.LIMIT,
            f"the metadata table has {users} user items; at most {METADATA_USER_ENTRIES_MAX} are allowed",
            offset=region_offset,
        )
    clash = first_overlap((item.offset, item.length, item.name) for item in items.values())
    if clash is not None:
        raise CorruptImage(
            Reason.OVERLAP,
            f"the {clash[0]} and the {clash[1]} overlap",
            offset=region_offset + clash[2],
        )


class DiskFacts(NamedTuple):
    """What the known items say, judged and completed."""

    block_size: int
    leave_blocks_allocated: bool
    has_parent: bool
    virtual_size: int
    disk_id: Guid
    logical_sector_size: int
    physical_sector_size: int
    findings: tuple[Finding, ...]
    read_only_reasons: tuple[str, ...]


def parse_disk_facts(table: MetadataTable, content: Mapping[Guid, bytes], region_offset: int) -> DiskFacts:
    """Judge the known items.

    Args:
        table: The parsed table.
        content: The bytes of every known item but the parent locator.
        region_offset: File offset of the metadata region.

    Raises:
        CorruptImage: A mandatory item is missing or says what cannot be.
    """
    judge = _FactsJudge(table, content, region_offset)
    block_size, bits = judge.file_parameters()
    logical = judge.logical_sector_size()
    size = judge.virtual_size(logical)
    physical = judge.physical_sector_size(logical)
    disk_id = judge.disk_id()
    has_parent = bool(bits & 2)
    _check_locator_presence(table, has_parent, region_offset, judge.findings)
    return DiskFacts(
        block_size,
        bool(bits & 1),
        has_parent,
        size,
        disk_id,
        logical,
        physical,
        tuple(judge.findings),
        tuple(judge.reasons),
    )


class _FactsJudge:
    """Reads one item after the other and collects what is odd."""

    def __init__(self, table: MetadataTable, content: Mapping[Guid, bytes], region_offset: int) -> None:
        self._known = table.known
        self._content = content
        self._region_offset = region_offset
        self.findings: list[Finding] = []
        self.reasons: list[str] = []

    def file_parameters(self) -> tuple[int, int]:
        """Return the block size and the flags."""
        block_size, bits = struct.unpack("<II", self._mandatory(ITEM_FILE_PARAMETERS))
        at = self._place(ITEM_FILE_PARAMETERS)
        _check_block_size(block_size, at)
        if bits & ~3:
            message = "reserved bits of the file parameters are set"
            self.findings.append(Finding("M14", Severity.WARNING, message, at + 4))
        return block_size, bits

    def logical_sector_size(self) -> int:
        size = int.from_bytes(self._mandatory(ITEM_LOGICAL_SECTOR_SIZE), "little")
        if size not in SECTOR_SIZES:
            raise CorruptImage(
                Reason.BAD_VALUE,
                f"the logical sector size is {size}; it must be 512 or 4096",
                offset=self._place(ITEM_LOGICAL_SECTOR_SIZE),
            )
        return size

    def virtual_size(self, sector_size: int) -> int:
        size = int.from_bytes(self._mandatory(ITEM_VIRTUAL_DISK_SIZE), "little")
        _check_virtual_size(size, sector_size, self._place(ITEM_VIRTUAL_DISK_SIZE))
        return size

    def physical_sector_size(self, logical: int) -> int:
        raw = self._optional(ITEM_PHYSICAL_SECTOR_SIZE, "512 is used")
        if raw is None:
            return 512
        size = int.from_bytes(raw, "little")
        if size in SECTOR_SIZES:
            return size
        message = f"the physical sector size is {size}, neither 512 nor 4096; {logical} is used"
        place = self._place(ITEM_PHYSICAL_SECTOR_SIZE)
        self.findings.append(Finding("M23", Severity.WARNING, message, place))
        return logical

    def disk_id(self) -> Guid:
        raw = self._optional(ITEM_VIRTUAL_DISK_ID, "the id is taken as zero")
        return ZERO_GUID if raw is None else Guid(raw)

    def _place(self, item_id: Guid) -> int:
        return self._region_offset + self._known[item_id].offset

    def _mandatory(self, item_id: Guid) -> bytes:
        if item_id not in self._known:
            raise CorruptImage(
                Reason.MISSING_ITEM, f"the metadata has no {_NAMES[item_id]}", offset=self._region_offset
            )
        return self._content[item_id]

    def _optional(self, item_id: Guid, instead: str) -> bytes | None:
        if item_id in self._known:
            return self._content[item_id]
        message = f"the metadata has no {_NAMES[item_id]}; {instead}"
        self.findings.append(Finding("M3", Severity.ERROR, message, self._region_offset))
        self.reasons.append(message)
        return None


def _check_block_size(block_size: int, at: int) -> None:
    if not is_power_of_two(block_size) or not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"the block size is {block_size}; it must be a power of two from 1 MiB to 256 MiB",
            offset=at,
        )


def _check_virtual_size(size: int, sector_size: int, at: int) -> None:
    if size == 0 or size > VIRTUAL_SIZE_MAX:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"the virtual disk has {size} bytes; it must have more than 0 and at most 64 TiB",
            offset=at,
        )
    if size % sector_size:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"the virtual disk has {size} bytes, not a multiple of its {sector_size}-byte sectors",
            offset=at,
        )


def _check_locator_presence(
    table: MetadataTable, has_parent: bool, region_offset: int, findings: list[Finding]
) -> None:
    locator = table.known.get(ITEM_PARENT_LOCATOR)
    if has_parent and locator is None:
        raise CorruptImage(
            Reason.PARENT_LOCATOR,
            "the image says that it has a parent, and has no parent locator to name it",
            offset=region_offset,
        )
    if not has_parent and locator is not None:
        findings.append(
            Finding(
                "M26",
                Severity.WARNING,
                "the image has a parent locator and says that it has no parent; the locator is ignored",
                region_offset + locator.offset,
            )
        )
