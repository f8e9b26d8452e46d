"""The fixed structures of a VHDX file as plain records with every field free to be wrong.

Owns: the packing of identifier, headers, region tables, metadata and parent
locator. A `checksum` or `count` of None means "what the specification asks
for"; anything else is written as it stands. It must not know where structures
go in a file, and it shares nothing with the product.

Source: [MS-VHDX] 2.2.1-2.2.3, 2.6.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from tests.support.vhdx.crc32c import crc32c

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

NIL = UUID(int=0)

BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")

FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
INCOMPLETE_FILE = UUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3")

LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")

IS_USER = 1
IS_VIRTUAL_DISK = 2
IS_REQUIRED = 4

HEADER_OFFSETS = (64 * KIB, 128 * KIB)
TABLE_OFFSETS = (192 * KIB, 256 * KIB)


def seal(structure: bytes, checksum: int | None) -> bytes:
    """Write the checksum field at offset 4: the right one, or the one given."""
    if checksum is None:
        checksum = crc32c(structure[:4] + bytes(4) + structure[8:])
    return structure[:4] + struct.pack("<I", checksum) + structure[8:]


def encode_identifier(creator: str = "an independent builder", signature: bytes = b"vhdxfile") -> bytes:
    """Return the first 520 bytes of a file."""
    return signature + creator.encode("utf-16-le").ljust(512, b"\0")


@dataclass
class Header:
    """One of the two headers."""

    sequence: int
    log_offset: int
    log_length: int
    file_write: UUID = field(default_factory=uuid4)
    data_write: UUID = field(default_factory=uuid4)
    log_guid: UUID = NIL
    log_version: int = 0
    version: int = 1
    signature: bytes = b"head"
    reserved: bytes = bytes(4016)
    checksum: int | None = None

    def encode(self) -> bytes:
        """Return the 4096 bytes of the header."""
        guids = (self.file_write.bytes_le, self.data_write.bytes_le, self.log_guid.bytes_le)
        packed = struct.pack(
            "<4sIQ16s16s16sHHIQ",
            self.signature,
            0,
            self.sequence,
            *guids,
            self.log_version,
            self.version,
            self.log_length,
            self.log_offset,
        )
        return seal((packed + self.reserved).ljust(4096, b"\0"), self.checksum)


@dataclass
class Region:
    """One entry of a region table; offsets and lengths in bytes."""

    guid: UUID
    offset: int
    length: int
    flags: int = 1


@dataclass
class RegionTable:
    """One of the two region tables."""

    regions: list[Region]
    count: int | None = None
    signature: bytes = b"regi"
    reserved: int = 0
    checksum: int | None = None

    def find(self, guid: UUID) -> Region:
        """Return the first entry of `guid`."""
        return next(region for region in self.regions if region.guid == guid)

    def encode(self) -> bytes:
        """Return the 65536 bytes of the table."""
        count = len(self.regions) if self.count is None else self.count
        packed = struct.pack("<4sIII", self.signature, 0, count, self.reserved)
        for region in self.regions:
            packed += struct.pack("<16sQII", region.guid.bytes_le, region.offset, region.length, region.flags)
        return seal(packed.ljust(64 * KIB, b"\0"), self.checksum)


@dataclass
class Item:
    """One metadata item; an `offset` or `length` of None is where and what `data` is."""

    guid: UUID
    data: bytes
    flags: int
    offset: int | None = None
    length: int | None = None
    reserved: int = 0


@dataclass
class Metadata:
    """The metadata region: the table, then the items one after another."""

    items: list[Item]
    count: int | None = None
    signature: bytes = b"metadata"
    reserved: int = 0
    first_item: int = 64 * KIB

    def find(self, guid: UUID) -> Item:
        """Return the first item of `guid`."""
        return next(item for item in self.items if item.guid == guid)

    def set(self, guid: UUID, data: bytes) -> None:
        """Give an item other content."""
        self.find(guid).data = data

    def remove(self, guid: UUID) -> None:
        """Take an item out."""
        self.items.remove(self.find(guid))

    def encode(self) -> list[tuple[int, bytes]]:
        """Return the pieces of the region as (offset in the region, bytes)."""
        count = len(self.items) if self.count is None else self.count
        table = struct.pack("<8sHH20s", self.signature, self.reserved, count, b"")
        pieces: list[tuple[int, bytes]] = []
        free = self.first_item
        for item in self.items:
            length = len(item.data) if item.length is None else item.length
            offset = item.offset
            if offset is None:
                offset = free if length else 0
                free += len(item.data)
            table += struct.pack("<16sIIII", item.guid.bytes_le, offset, length, item.flags, item.reserved)
            if item.data:
                pieces.append((offset, item.data))
        return [(0, table), *pieces]


def file_parameters(block_size: int, *, fixed: bool = False, has_parent: bool = False) -> bytes:
    """Return the content of the file-parameters item."""
    return struct.pack("<II", block_size, int(fixed) | int(has_parent) << 1)


def encode_locator(
    pairs: Sequence[tuple[str | bytes, str | bytes]],
    *,
    locator_type: UUID = LOCATOR_TYPE,
    count: int | None = None,
    strings_first_gap: int = 0,
) -> bytes:
    """Return a parent-locator item; keys and values given as bytes go in unchanged."""
    table = b""
    strings = bytes(strings_first_gap)
    base = 20 + 12 * len(pairs)
    for key, value in pairs:
        raw_key = key if isinstance(key, bytes) else key.encode("utf-16-le")
        raw_value = value if isinstance(value, bytes) else value.encode("utf-16-le")
        key_offset = base + len(strings)
        table += struct.pack("<IIHH", key_offset, key_offset + len(raw_key), len(raw_key), len(raw_value))
        strings += raw_key + raw_value
    header = struct.pack("<16sHH", locator_type.bytes_le, 0, len(pairs) if count is None else count)
    return header + table + strings


def linkage(guid: UUID) -> str:
    """Return a GUID as the parent locator writes it."""
    return "{" + str(guid) + "}"
