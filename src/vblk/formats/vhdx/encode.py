"""Encoding: from facts to the bytes of a VHDX file.

Owns: the inverse of every parser of this package, checksums included. It must
not know where the bytes go or when. The records are drawn beside their parsers.
Ordering rule: a checksum is put in last, over everything else of its structure.

Source: [MS-VHDX] "File Type Identifier", "Headers", "Region Table", "Metadata
Table", "Known Metadata Items", "Parent Locator".
"""

import struct
from collections.abc import Mapping, Sequence

from vblk.codec.crc32c import crc32c_without
from vblk.errors import OptionError
from vblk.formats.vhdx import header, locator, metadata, region
from vblk.formats.vhdx.header import Header
from vblk.formats.vhdx.layout import (
    CHECKSUM_OFFSET,
    CREATOR_SIZE,
    HEADER_SIZE,
    IDENTIFIER_SIGNATURE,
    LOCATOR_TYPE_VHDX,
    METADATA_TABLE_SIZE,
    PAGE_SIZE,
    REGION_TABLE_SIZE,
)
from vblk.formats.vhdx.metadata import MetadataItem
from vblk.formats.vhdx.region import Region

LEAVE_BLOCKS_ALLOCATED = 1
HAS_PARENT = 2

_STRING_BYTES_MAX = 0xFFFE


def with_checksum(data: bytearray) -> bytes:
    """Return a structure with its CRC-32C, which stands at byte 4, put in."""
    struct.pack_into("<I", data, CHECKSUM_OFFSET, crc32c_without(bytes(data), CHECKSUM_OFFSET))
    return bytes(data)


def encode_identifier(creator: str) -> bytes:
    """Return the first 4096 bytes of a file; `creator` is cut to 256 UTF-16 units."""
    name = creator.encode("utf-16-le")[:CREATOR_SIZE]
    return (IDENTIFIER_SIGNATURE + name).ljust(PAGE_SIZE, b"\0")


def encode_header(facts: Header) -> bytes:
    """Return the 4096 bytes of one copy of the header."""
    data = bytearray(HEADER_SIZE)
    header.HEADER_RECORD.pack_into(
        data,
        0,
        header.SIGNATURE,
        0,
        facts.sequence_number,
        facts.file_write_guid,
        facts.data_write_guid,
        facts.log_guid,
        facts.log_version,
        facts.version,
        facts.log_length,
        facts.log_offset,
    )
    return with_checksum(data)


def encode_region_table(regions: Sequence[Region]) -> bytes:
    """Return the 64 KiB of a region table that names `regions` in this order."""
    data = bytearray(REGION_TABLE_SIZE)
    region.TABLE_RECORD.pack_into(data, 0, region.SIGNATURE, 0, len(regions), 0)
    for index, each in enumerate(regions):
        region.ENTRY_RECORD.pack_into(
            data, 16 + 32 * index, each.guid, each.file_offset, each.length, int(each.required)
        )
    return with_checksum(data)


def encode_metadata_table(items: Sequence[MetadataItem]) -> bytes:
    """Return the 64 KiB of a metadata table that names `items` in this order."""
    data = bytearray(METADATA_TABLE_SIZE)
    metadata.TABLE_RECORD.pack_into(data, 0, metadata.SIGNATURE, 0, len(items), bytes(20))
    for index, item in enumerate(items):
        flags = item.is_user | item.is_virtual_disk << 1 | item.is_required << 2
        metadata.ENTRY_RECORD.pack_into(
            data, 32 + 32 * index, item.item_id, item.offset, item.length, flags, 0
        )
    return bytes(data)


def encode_file_parameters(block_size: int, *, leave_blocks_allocated: bool, has_parent: bool) -> bytes:
    """Return the file parameters item."""
    flags = leave_blocks_allocated * LEAVE_BLOCKS_ALLOCATED | has_parent * HAS_PARENT
    return struct.pack("<II", block_size, flags)


def encode_virtual_size(size: int) -> bytes:
    """Return the virtual disk size item; `size` is in bytes."""
    return struct.pack("<Q", size)


def encode_sector_size(size: int) -> bytes:
    """Return the item of a logical or physical sector size in bytes."""
    return struct.pack("<I", size)


def encode_locator(pairs: Mapping[str, str]) -> bytes:
    """Return the parent locator item: header, pairs, then all strings.

    Raises:
        OptionError: A string is longer than a locator can hold, or no text.
    """
    strings = bytearray()
    table = bytearray()
    start = locator.HEADER_RECORD.size + locator.PAIR_RECORD.size * len(pairs)
    for key, value in pairs.items():
        raw_key, raw_value = key.encode("utf-16-le"), _encode_value(value)
        at = start + len(strings)
        table += locator.PAIR_RECORD.pack(at, at + len(raw_key), len(raw_key), len(raw_value))
        strings += raw_key + raw_value
    return locator.HEADER_RECORD.pack(LOCATOR_TYPE_VHDX, 0, len(pairs)) + bytes(table + strings)


def _encode_value(value: str) -> bytes:
    try:
        raw = value.encode("utf-16-le")
    except UnicodeEncodeError:
        raise OptionError(f"{value!r} is no text that a parent locator can hold") from None
    if not 0 < len(raw) <= _STRING_BYTES_MAX:
        raise OptionError(f"a parent locator cannot hold a text of {len(raw)} bytes")
    return raw
