"""Numbers of the qcow2 format: fields, flags, limits, and the sizes that follow from them.

Owns: constants and `Geometry`. Everything in a qcow2 file is big-endian.

    file     clusters of one size; the header is the first
    counts   refcount table -> refcount blocks -> a reference count for each cluster
    mapping  L1 table -> L2 tables -> one entry for each cluster of the disk

    L1 and refcount table entries, 8 bytes: file offset, L1 with COPIED in bit 63
    L2 entry, 8 bytes:
        63 COPIED | 62 COMPRESSED | 61-56 0 | 55-9 file offset | 8-1 0 | 0 ZERO
        compressed: 61-x sectors beyond the first | x-1..0 file offset, of any alignment

Source: docs/interop/qcow2.txt of QEMU, "Header", "Host cluster management", "Cluster mapping".
"""

from dataclasses import dataclass, field
from typing import Final

from vblk.units import KIB, MIB

MAGIC: Final = b"QFI\xfb"
CLUSTER_BITS_MIN: Final = 9
CLUSTER_BITS_MAX: Final = 21
ENTRY_SIZE: Final = 8
SECTOR: Final = 512
PAGE_SIZE_MAX: Final = 4 * KIB

L1_SIZE_MAX: Final = 32 * MIB
"""The longest L1 table in bytes, as everywhere."""
COUNT_TABLE_SIZE_MAX: Final = 8 * MIB
"""The longest refcount table in bytes, as everywhere."""
SNAPSHOTS_MAX: Final = 65536
SNAPSHOT_TABLE_SIZE_MAX: Final = 64 * MIB
BACKING_NAME_MAX: Final = 1023

COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZERO: Final = 1
OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
COUNT_OFFSET_MASK: Final = 0xFFFF_FFFF_FFFF_FE00
FILE_OFFSET_MAX: Final = 1 << 56
"""Clusters that are mapped lie below this file offset."""

DIRTY: Final = 1 << 0
CORRUPT: Final = 1 << 1
EXTERNAL_DATA: Final = 1 << 2
COMPRESSION_TYPE: Final = 1 << 3
EXTENDED_L2: Final = 1 << 4
LAZY_REFCOUNTS: Final = 1 << 0
BITMAPS: Final = 1 << 0

EXTENSION_END: Final = 0
EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA
EXTENSION_FEATURE_NAMES: Final = 0x6803F857
EXTENSION_BITMAPS: Final = 0x23852875


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the clusters of one image are counted and mapped.

    `size` is that of the disk in bytes, `refcount_bits` the width of a count.
    `page_size` is the piece in which tables are kept in memory: never more than
    a cluster, so that no page of a table holds anything else.
    """

    cluster_bits: int
    refcount_order: int
    size: int
    cluster_size: int = field(init=False)
    page_size: int = field(init=False)
    table_entries: int = field(init=False)
    """Entries of an L2 table."""
    table_span: int = field(init=False)
    """Bytes of the disk that one L2 table maps."""
    counts_per_block: int = field(init=False)
    """Counts in a refcount block."""

    def __post_init__(self) -> None:
        cluster_size = 1 << self.cluster_bits
        values = {
            "cluster_size": cluster_size,
            "page_size": min(cluster_size, PAGE_SIZE_MAX),
            "table_entries": cluster_size // ENTRY_SIZE,
            "table_span": cluster_size * cluster_size // ENTRY_SIZE,
            "counts_per_block": cluster_size * 8 >> self.refcount_order,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def refcount_bits(self) -> int:
        """The width of a reference count."""
        return 1 << self.refcount_order

    @property
    def clusters(self) -> int:
        """How many clusters the disk has."""
        return -(-self.size // self.cluster_size)

    @property
    def l1_needed(self) -> int:
        """How many L1 entries the disk needs."""
        return -(-self.size // self.table_span)

    def compressed(self, entry: int) -> tuple[int, int]:
        """Return file offset and the most bytes of what a compressed entry names."""
        shift = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1
        return offset, sectors * SECTOR - offset % SECTOR

    def compressed_entry(self, file_offset: int, length: int) -> int:
        """Return the entry that names a compressed cluster of so many bytes."""
        shift = 62 - (self.cluster_bits - 8)
        more_sectors = (file_offset + length - 1) // SECTOR - file_offset // SECTOR
        assert file_offset < 1 << shift
        assert more_sectors < 1 << 62 - shift
        return COMPRESSED | more_sectors << shift | file_offset

    def clusters_of(self, file_offset: int, length: int) -> range:
        """Return the file offsets of the clusters that a range touches."""
        start = file_offset & -self.cluster_size
        return range(start, file_offset + length, self.cluster_size)
