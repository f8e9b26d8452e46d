"""A new qcow2 image, planned: which bytes stand where.

Owns: the layout of an empty image, as QEMU makes it: header, refcount table,
refcount blocks, L1 table, one behind the other. It writes nothing.

Ordering rule: the header comes last, for without it there is no image.

Source: docs/interop/qcow2.txt, "Header", "Host cluster management".
"""

from dataclasses import dataclass

from vblk.errors import OptionError
from vblk.formats.qcow2.counts import set_count
from vblk.formats.qcow2.header import COMPRESSION_TYPES, Header, encode_header, feature_name_table
from vblk.formats.qcow2.layout import (
    CLUSTER_BITS_MIN,
    COMPRESSION_TYPE,
    ENTRY_SIZE,
    L1_SIZE_MAX,
    LAZY_REFCOUNTS,
    Geometry,
)
from vblk.units import OFFSET_MAX, align_up, is_power_of_two

SECTOR = 512


@dataclass(frozen=True, slots=True)
class NewQcow2:
    """What is made; `size` in bytes."""

    size: int
    version: int = 3
    cluster_size: int = 65536
    refcount_bits: int = 16
    lazy_refcounts: bool = False
    compression: str = "zlib"
    backing_file: str | None = None
    backing_format: str | None = None


@dataclass(frozen=True, slots=True)
class Creation:
    """The bytes of a new image: `length` is the file's, `tables` are written before `header`.

    `full_tables` are the bytes of header and tables when every cluster has space.
    """

    length: int
    full_tables: int
    tables: tuple[tuple[int, bytes], ...]
    header: bytes


def plan_creation(new: NewQcow2) -> Creation:
    """Plan a new image.

    Raises:
        OptionError: It cannot be made so, in QEMU's words.
    """
    _check(new)
    size = align_up(new.size, SECTOR)
    header = Header(
        new.version,
        new.cluster_size.bit_length() - 1,
        size,
        0,
        0,
        new.cluster_size,
        1,
        backing_file=new.backing_file,
        incompatible=COMPRESSION_TYPE if new.compression != "zlib" else 0,
        compatible=LAZY_REFCOUNTS if new.lazy_refcounts else 0,
        refcount_order=new.refcount_bits.bit_length() - 1,
        compression_type=COMPRESSION_TYPES.index(new.compression),
    ).with_backing(new.backing_file, new.backing_format)
    geometry = header.geometry
    l1_entries = geometry.l1_needed
    if l1_entries * ENTRY_SIZE > L1_SIZE_MAX or size > OFFSET_MAX:
        raise OptionError(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)"
        )
    cluster = geometry.cluster_size
    l1_length = l1_entries * ENTRY_SIZE
    blocks, table_clusters = _counts_for(1 + -(-l1_length // cluster), geometry.counts_per_block, cluster)
    first_block = (1 + table_clusters) * cluster
    l1_at = first_block + blocks * cluster
    used = 1 + table_clusters + blocks + -(-l1_length // cluster)
    header = header._replace(
        refcount_table_clusters=table_clusters, l1_size=l1_entries, l1_table_offset=l1_at if l1_entries else 0
    )
    table = b"".join((first_block + number * cluster).to_bytes(8, "big") for number in range(blocks))
    counts = bytearray(blocks * cluster)
    for index in range(used):
        set_count(counts, geometry.refcount_order, index, 1)
    return Creation(
        max(l1_at + l1_length, first_block + blocks * cluster),
        _full_tables(geometry),
        ((cluster, table), (first_block, bytes(counts))),
        _encoded(header),
    )


def _full_tables(geometry: Geometry) -> int:
    size = geometry.cluster_size
    tables = 1 + -(-geometry.l1_needed * ENTRY_SIZE // size) + geometry.l1_needed
    counts = _counts_for(tables + geometry.clusters, geometry.counts_per_block, size)
    return (tables + sum(counts)) * size


def _encoded(header: Header) -> bytes:
    """Return the header with the names of all features, if there is room for them."""
    if header.version >= 3 and header.cluster_bits > CLUSTER_BITS_MIN:
        named = header._replace(extensions=(*header.extensions, feature_name_table()))
        try:
            return encode_header(named)
        except OptionError:
            pass
    return encode_header(header)


def _counts_for(others: int, counts_per_block: int, cluster_size: int) -> tuple[int, int]:
    """Return how many refcount blocks and clusters of their table it takes for `others` and themselves."""
    blocks = table_clusters = 1
    while True:
        used = others + blocks + table_clusters
        wanted = -(-used // counts_per_block)
        wanted_table = -(-wanted * ENTRY_SIZE // cluster_size)
        if wanted <= blocks and wanted_table <= table_clusters:
            return blocks, table_clusters
        blocks, table_clusters = max(blocks, wanted), max(table_clusters, wanted_table)


def _check(new: NewQcow2) -> None:
    if not is_power_of_two(new.cluster_size) or not 512 <= new.cluster_size <= 2 << 20:
        raise OptionError("Cluster size must be a power of two between 512 and 2048k")
    if not is_power_of_two(new.refcount_bits) or new.refcount_bits > 64:
        raise OptionError("Refcount width must be a power of two and may not exceed 64 bits")
    if new.compression not in COMPRESSION_TYPES:
        raise OptionError(f"Parameter 'compression-type' does not accept value '{new.compression}'")
    if new.version >= 3:
        return
    if new.refcount_bits != 16:
        raise OptionError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use version=v3 or greater)"
        )
    if new.lazy_refcounts:
        raise OptionError(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"
        )
    if new.compression != "zlib":
        raise OptionError(
            "Non-zlib compression type is only supported with compatibility level 1.1 and above "
            "(use version=v3 or greater)"
        )
