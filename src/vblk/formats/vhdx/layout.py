"""The layout of a VHDX file: places, sizes, identifiers.

Owns: the constants that more than one part of the parser needs. Records are
drawn beside the code that parses them. All integers are little-endian.

    file offset
    0x000000   64 KiB  file type identifier           never rewritten
    0x010000   64 KiB  header, copy 1 (4 KiB used)    the copies take turns
    0x020000   64 KiB  header, copy 2
    0x030000   64 KiB  region table, copy 1           rewritten through the log
    0x040000   64 KiB  region table, copy 2
    0x050000           reserved, up to 1 MiB
    0x100000           log, metadata region, BAT region, other regions, blocks:
                       each at a multiple of 1 MiB, in any order, none overlapping

Source: [MS-VHDX] "VHDX Structures", "Layout".
"""

from vblk.codec.guid import Guid
from vblk.units import GIB, KIB, MIB, TIB

IDENTIFIER_SIGNATURE = b"vhdxfile"
CREATOR_OFFSET = 8
CREATOR_SIZE = 512

HEADER_OFFSETS = (64 * KIB, 128 * KIB)
HEADER_SIZE = 4 * KIB
REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)
REGION_TABLE_SIZE = 64 * KIB
FIXED_AREA_SIZE = 320 * KIB
"""Identifier, headers and region tables together."""

HEADER_AREA_SIZE = MIB
"""No other structure starts below this file offset."""

LOGGED_AREA_START = REGION_TABLE_OFFSETS[0]
"""The log never rewrites what is before it: the identifier and the headers."""

PAGE_SIZE = 4 * KIB
"""The unit of the log, and of all metadata that is loaded."""

CHECKSUM_OFFSET = 4
"""Where header, region table and log entry keep their CRC-32C."""

TABLE_ENTRIES_MAX = 2047
"""Region tables and the metadata table have 64 KiB each: 32 bytes, then entries of 32 bytes."""

REGION_BAT = Guid.parse("2dc27766-f623-4200-9d64-115e9bfd4a08")
REGION_METADATA = Guid.parse("8b7ca206-4790-4b9a-b8fe-575f050f886e")

METADATA_TABLE_SIZE = 64 * KIB
METADATA_ITEM_SIZE_MAX = MIB
METADATA_USER_ENTRIES_MAX = 1024

ITEM_FILE_PARAMETERS = Guid.parse("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
ITEM_VIRTUAL_DISK_SIZE = Guid.parse("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
ITEM_VIRTUAL_DISK_ID = Guid.parse("beca12ab-b2e6-4523-93ef-c309e000c746")
ITEM_LOGICAL_SECTOR_SIZE = Guid.parse("8141bf1d-a96f-4709-ba47-f233a8faab5f")
ITEM_PHYSICAL_SECTOR_SIZE = Guid.parse("cda348c7-445d-4471-9cc9-e9885251c556")
ITEM_PARENT_LOCATOR = Guid.parse("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
ITEM_UNFINISHED = Guid.parse("71cc85f0-1b69-4e28-9558-c3bf83ae75d3")
"""Present while a long creation is under way: such a file is not an image yet."""

LOCATOR_TYPE_VHDX = Guid.parse("b04aefb7-d19e-4a81-b789-25b8e9445913")

BLOCK_SIZE_MIN = MIB
BLOCK_SIZE_MAX = 256 * MIB
SECTOR_SIZES = (512, 4096)
VIRTUAL_SIZE_MAX = 64 * TIB

CHUNK_SECTORS = 1 << 23
"""The sectors that one sector-bitmap block of 1 MiB describes, one bit each."""

SECTOR_BITMAP_SIZE = MIB

BAT_ENTRY_SIZE = 8
BAT_ENTRIES_PER_PAGE = PAGE_SIZE // BAT_ENTRY_SIZE
BAT_STATE_MASK = 0x7
BAT_RESERVED_MASK = 0xFFFF8
BAT_OFFSET_MASK = ~0xFFFFF & 0xFFFFFFFFFFFFFFFF

LOOKUP_BAT_BYTES = MIB
"""How much BAT one lookup should need at most."""

LOOKUP_SPAN_DIFFERENCING = 256 * MIB
"""The guest bytes a lookup covers at most where each sector may be an extent of its own."""

CHECK_OFFSET_MAX = 128 * TIB
"""The check tracks who owns which part of the file up to this file offset."""

REPLAY_DESCRIPTORS_MAX = 1 << 20
REPLAY_PAGES_MAX = 256 * MIB // PAGE_SIZE
"""A log that would change more than this is refused: real logs have a few MiB."""

LOG_WINDOW_SIZE = MIB
"""How much of the log is in memory at a time while it is searched."""

SEQUENCE_NUMBER_MAX = (1 << 64) - 1

SESSION_UPDATES_MAX = 16
"""More headers than one opening for writing writes: a replay's and a session's, each in both copies."""

OVERLAY_LENGTH_MAX = GIB * GIB * 4
"""A log entry may not ask for a file longer than this: 4 EiB."""
