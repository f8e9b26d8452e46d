"""The region tables: where the BAT, the metadata and unknown regions are.

Owns: parsing one table, choosing between the two copies, and the rule that no
region overlaps another. It reads through the log's overlay and must not know so.

Source: [MS-VHDX] "Region Table".
"""

import struct
from typing import NamedTuple

from vblk.codec.crc32c import crc32c_without
from vblk.codec.guid import Guid
from vblk.codec.ranges import first_overlap
from vblk.errors import CorruptImage, ImageError, Reason, UnsupportedFeature
from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.layout import (
    CHECKSUM_OFFSET,
    HEADER_AREA_SIZE,
    REGION_BAT,
    REGION_METADATA,
    REGION_TABLE_OFFSETS,
    REGION_TABLE_SIZE,
    TABLE_ENTRIES_MAX,
)
from vblk.units import MIB

SIGNATURE = b"regi"

TABLE_RECORD = struct.Struct("<4sIII")
"""
      0   4  "regi"
      4   4  CRC-32C of 65536 bytes, this field taken as zero
      8   4  count of entries, at most 2047
     12   4  reserved
"""

ENTRY_RECORD = struct.Struct("<16sQII")
"""
      0  16  GUID, unique in the table
     16   8  file offset        multiple of 1 MiB, at least 1 MiB
     24   4  length             multiple of 1 MiB, not 0
     28   4  bit 0: required; others reserved
"""

_NAMES = {REGION_BAT: "BAT", REGION_METADATA: "metadata region"}


class Region(NamedTuple):
    """One region; `entry_offset` is where the table names it, relative to the table."""

    guid: Guid
    file_offset: int
    length: int
    required: bool
    entry_offset: int

    @property
    def name(self) -> str:
        """The region's name for messages."""
        return _NAMES.get(self.guid, f"region {self.guid}")

    @property
    def known(self) -> bool:
        """Whether this version knows what the region holds."""
        return self.guid in _NAMES


class RegionTable(NamedTuple):
    """The table that is in force."""

    bat: Region
    metadata: Region
    unknown: tuple[Region, ...]
    findings: tuple[Finding, ...]
    read_only_reasons: tuple[str, ...]

    def all(self) -> tuple[Region, ...]:
        """Return every region, the known ones first."""
        return (self.bat, self.metadata, *self.unknown)


def is_valid_table(data: bytes) -> bool:
    """Tell whether 64 KiB have a region table's signature and a right checksum."""
    if len(data) != REGION_TABLE_SIZE or data[:4] != SIGNATURE:
        return False
    checksum: int = TABLE_RECORD.unpack_from(data)[1]
    return crc32c_without(data, CHECKSUM_OFFSET) == checksum


def choose_table(copies: tuple[bytes, bytes], file_size: int) -> RegionTable:
    """Decide between the two copies, 64 KiB each, and parse the one in force.

    The first is, unless it is damaged, or makes no sense and the second does.

    Args:
        copies: Both tables, as the log leaves them.
        file_size: Length of the file in bytes, as the log leaves it.

    Raises:
        CorruptImage: Both are damaged, or the one in force is wrong.
        UnsupportedFeature: A region is required and unknown.
    """
    valid = [is_valid_table(copy) for copy in copies]
    findings: list[Finding] = []
    reasons: list[str] = []
    first, second = REGION_TABLE_OFFSETS
    if not any(valid):
        raise CorruptImage(
            Reason.BAD_CHECKSUM,
            "both region tables are damaged: a valid one has the signature 'regi' and a right CRC-32C",
            offset=first,
        )
    if not valid[0]:
        findings.append(
            Finding("T1", Severity.ERROR, "the first region table is damaged; the second is used", first)
        )
    elif not valid[1]:
        findings.append(
            Finding("T2", Severity.ERROR, "the second region table is damaged; the first is used", second)
        )
    elif copies[0] != copies[1]:
        contradiction = "the two region tables differ; the first is used"
        findings.append(Finding("T4", Severity.ERROR, contradiction, second))
        reasons.append(contradiction)
        try:
            return _parse_table(copies[0], first, file_size, findings, reasons)
        except CorruptImage:
            # Then the first copy is the wrong one, if the second makes sense.
            findings, reasons = [], ["the two region tables differ; the second is used"]
            findings.append(Finding("T4", Severity.ERROR, reasons[0], first))
            try:
                return _parse_table(copies[1], second, file_size, findings, reasons)
            except ImageError:
                pass
            raise
    chosen = 0 if valid[0] else 1
    return _parse_table(copies[chosen], REGION_TABLE_OFFSETS[chosen], file_size, findings, reasons)


def _parse_table(
    data: bytes, table_offset: int, file_size: int, findings: list[Finding], reasons: list[str]
) -> RegionTable:
    _, _, count, reserved = TABLE_RECORD.unpack_from(data)
    if count > TABLE_ENTRIES_MAX:
        raise CorruptImage(
            Reason.LIMIT,
            f"the region table claims {count} entries; at most {TABLE_ENTRIES_MAX} fit",
            offset=table_offset + 8,
        )
    if reserved:
        findings.append(
            Finding(
                "T17", Severity.WARNING, "a reserved field of the region table is not 0", table_offset + 12
            )
        )
    regions: dict[Guid, Region] = {}
    for index in range(count):
        at = 16 + 32 * index
        region, flags = _parse_entry(data, at)
        _check_entry(region, regions, table_offset + at, file_size)
        regions[region.guid] = region
        if flags & ~1:
            findings.append(
                Finding(
                    "T17",
                    Severity.WARNING,
                    f"reserved flags of the {region.name} are set",
                    table_offset + at + 28,
                )
            )
        if not region.known and region.file_offset + region.length > file_size:
            message = f"the optional {region.name} ends beyond the file"
            findings.append(Finding("T8", Severity.WARNING, message, table_offset + at))
            reasons.append(message)
    for guid, name in _NAMES.items():
        if guid not in regions:
            raise CorruptImage(
                Reason.MISSING_ITEM, f"the region table has no entry for the {name}", offset=table_offset
            )
    clash = first_overlap((region.file_offset, region.length, region.name) for region in regions.values())
    if clash is not None:
        raise CorruptImage(
            Reason.OVERLAP, f"the {clash[0]} and the {clash[1]} overlap at {clash[2]:#x}", offset=table_offset
        )
    unknown = tuple(region for region in regions.values() if not region.known)
    return RegionTable(
        regions[REGION_BAT], regions[REGION_METADATA], unknown, tuple(findings), tuple(reasons)
    )


def _parse_entry(data: bytes, at: int) -> tuple[Region, int]:
    guid, file_offset, length, flags = ENTRY_RECORD.unpack_from(data, at)
    return Region(Guid(guid), file_offset, length, bool(flags & 1), at), flags


def _check_entry(region: Region, regions: dict[Guid, Region], at: int, file_size: int) -> None:
    """Refuse an entry that no reader can use.

    A region that is unknown and optional may end beyond the file: nothing of it
    is read. Its place must still be sound, for writers keep out of it.
    """
    if region.guid in regions:
        raise CorruptImage(Reason.DUPLICATE, f"the region table names the {region.name} twice", offset=at)
    if region.required and not region.known:
        raise UnsupportedFeature(
            Reason.UNKNOWN_REQUIRED, f"the {region.name} is required and not supported", offset=at
        )
    if region.file_offset < HEADER_AREA_SIZE:
        raise CorruptImage(
            Reason.OVERLAP,
            f"the {region.name} at {region.file_offset:#x} overlaps the first MiB, which holds the headers",
            offset=at + 16,
        )
    if region.file_offset % MIB:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"the {region.name}'s offset {region.file_offset:#x} is not a multiple of 1 MiB",
            offset=at + 16,
        )
    if region.length == 0 or region.length % MIB:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"the {region.name}'s length {region.length:#x} is not a positive multiple of 1 MiB",
            offset=at + 24,
        )
    end = region.file_offset + region.length
    if region.known and end > file_size:
        raise CorruptImage(
            Reason.TRUNCATED,
            f"the {region.name} reaches to {end:#x}, beyond the file's end at {file_size:#x}",
            offset=at + 16,
        )
