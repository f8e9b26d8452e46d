"""The header of a qcow2 image and its extensions, read and written.

Owns: `Header`, and the checks of everything that it says about itself. Whether
the tables that it names are where they should be is checked here too, as far as
the header alone tells.

    0 magic | 4 version | 8 backing name offset | 16 its length | 20 cluster bits
    24 size | 32 encryption | 36 L1 entries | 40 L1 offset | 48 refcount table
    offset | 56 its clusters | 60 snapshots | 64 snapshot table offset
    version 3: 72 incompatible | 80 compatible | 88 autoclear features
    96 refcount order | 100 header length | 104 compression type | padding
    then extensions (type, length, data, padding to 8), a zero one at the end,
    and in the rest of the cluster the backing file's name

What is not known is kept as it is: fields behind the known ones, and extensions.

Source: docs/interop/qcow2.txt, "Header", "Header extensions", "Feature name table".
"""

import struct
from typing import NamedTuple

from vblk.errors import CorruptImage, OptionError, Reason, UnsupportedFeature, WrongFormat
from vblk.formats.qcow2.layout import (
    BACKING_NAME_MAX,
    CLUSTER_BITS_MAX,
    CLUSTER_BITS_MIN,
    COMPRESSION_TYPE,
    CORRUPT,
    COUNT_TABLE_SIZE_MAX,
    DIRTY,
    ENTRY_SIZE,
    EXTENDED_L2,
    EXTENSION_BACKING_FORMAT,
    EXTENSION_END,
    EXTENSION_FEATURE_NAMES,
    EXTERNAL_DATA,
    L1_SIZE_MAX,
    LAZY_REFCOUNTS,
    MAGIC,
    SNAPSHOTS_MAX,
    Geometry,
)
from vblk.units import OFFSET_MAX, align_up

_BASE = struct.Struct(">4sIQIIQIIQQIIQ")
_MORE = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_NAME = struct.Struct(">BB46s")
_COMPRESSION_AT = _BASE.size + _MORE.size
HEADER_LENGTH = _COMPRESSION_AT + 8
"""The length of a header with all known fields, for version 3."""

KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | COMPRESSION_TYPE
COMPRESSION_TYPES = ("zlib", "zstd")
FEATURES: tuple[tuple[int, int, str], ...] = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)
"""The names of all features: kind (incompatible, compatible, autoclear), bit, name."""


class Extension(NamedTuple):
    """One header extension."""

    type: int
    data: bytes


class Header(NamedTuple):
    """What a header says. `unknown` are the bytes of fields behind the compression type."""

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    backing_file: str | None = None
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression_type: int = 0
    header_length: int = HEADER_LENGTH
    unknown: bytes = b""
    extensions: tuple[Extension, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The geometry that follows."""
        return Geometry(self.cluster_bits, self.refcount_order, self.size)

    @property
    def backing_format(self) -> str | None:
        """The name of the backing file's format, if the image says it."""
        data = self.extension(EXTENSION_BACKING_FORMAT)
        return None if data is None else data.decode("utf-8", "surrogateescape")

    @property
    def lazy_refcounts(self) -> bool:
        """Whether a writer may leave counts behind, under the dirty bit."""
        return bool(self.compatible & LAZY_REFCOUNTS)

    def extension(self, kind: int) -> bytes | None:
        """Return the data of the first extension of a type."""
        return next((each.data for each in self.extensions if each.type == kind), None)

    def with_backing(self, name: str | None, form: str | None) -> "Header":
        """Return the header with another backing file, or none."""
        kept = tuple(each for each in self.extensions if each.type != EXTENSION_BACKING_FORMAT)
        if name is not None and form is not None:
            kept = (Extension(EXTENSION_BACKING_FORMAT, form.encode("utf-8", "surrogateescape")), *kept)
        return self._replace(backing_file=name, extensions=kept)


def parse_cluster_bits(start: bytes) -> int:
    """Return the cluster size of an image as a power of two, from its first 24 bytes.

    Raises:
        WrongFormat: It is no qcow2 image.
        UnsupportedFeature: It is of a version that nobody knows.
    """
    if start[:4] != MAGIC:
        raise WrongFormat(Reason.WRONG_SIGNATURE, "Image is not in qcow2 format", offset=0)
    if len(start) < _BASE.size:
        raise CorruptImage(Reason.TRUNCATED, "the file ends within the qcow2 header", offset=len(start))
    version, cluster_bits = (int.from_bytes(start[at : at + 4], "big") for at in (4, 20))
    if version not in (2, 3):
        raise UnsupportedFeature(Reason.UNSUPPORTED_VERSION, f"Unsupported qcow2 version {version}", offset=4)
    if not CLUSTER_BITS_MIN <= cluster_bits <= CLUSTER_BITS_MAX:
        raise CorruptImage(Reason.BAD_VALUE, f"Unsupported cluster size: 2^{cluster_bits}", offset=20)
    return cluster_bits


def parse_header(data: bytes) -> Header:
    """Read a header.

    Args:
        data: The first cluster of the file; shorter if the file is.

    Raises:
        CorruptImage: A field cannot be right; the error names its offset.
        UnsupportedFeature: The image needs what this version does not know.
    """
    cluster_bits = parse_cluster_bits(data)
    cluster_size = 1 << cluster_bits
    base = _BASE.unpack_from(data)
    version, name_offset, name_length = base[1], base[2], base[3]
    size, encryption, l1_size, l1_offset, table_offset, table_clusters, snapshots, snapshots_offset = base[5:]
    header = Header(
        version,
        cluster_bits,
        size,
        l1_size,
        l1_offset,
        table_offset,
        table_clusters,
        None,
        snapshots,
        snapshots_offset if snapshots else 0,
        header_length=_BASE.size,
    )
    if version >= 3:
        header = _with_features(header, data, cluster_size)
    if name_offset > cluster_size:
        raise CorruptImage(Reason.BAD_VALUE, "Invalid backing file offset", offset=8)
    extensions = parse_extensions(data, header.header_length, name_offset or cluster_size)
    header = header._replace(extensions=extensions)
    _refuse_features(header)
    if header.refcount_order > 6:
        raise CorruptImage(
            Reason.BAD_VALUE, "Reference count entry width too large; may not exceed 64 bits", offset=96
        )
    if encryption:
        raise UnsupportedFeature(
            Reason.UNKNOWN_REQUIRED,
            "encrypted qcow2 images are not supported in this version of vblk",
            offset=32,
        )
    _check_tables(header)
    if name_offset:
        header = header._replace(backing_file=_backing_name(data, name_offset, name_length, cluster_size))
    return header


def _with_features(header: Header, data: bytes, cluster_size: int) -> Header:
    if len(data) < _COMPRESSION_AT:
        raise CorruptImage(Reason.TRUNCATED, "the file ends within the qcow2 header", offset=len(data))
    incompatible, compatible, autoclear, order, length = _MORE.unpack_from(data, _BASE.size)
    if length < _COMPRESSION_AT:
        raise CorruptImage(Reason.BAD_VALUE, "qcow2 header too short", offset=100)
    if length > cluster_size:
        raise CorruptImage(Reason.BAD_VALUE, "qcow2 header exceeds cluster size", offset=100)
    if length > len(data):
        raise CorruptImage(Reason.TRUNCATED, "the file ends within the qcow2 header", offset=len(data))
    if length % 8:
        raise CorruptImage(Reason.BAD_VALUE, "the qcow2 header's length is no multiple of 8", offset=100)
    compression = data[_COMPRESSION_AT] if length > _COMPRESSION_AT else 0
    if bool(compression) != bool(incompatible & COMPRESSION_TYPE):
        raise CorruptImage(
            Reason.BAD_VALUE,
            "qcow2: Compression type incompatible feature bit must "
            + ("be set" if compression else "not be set"),
            offset=72,
        )
    if compression >= len(COMPRESSION_TYPES):
        raise UnsupportedFeature(
            Reason.UNKNOWN_REQUIRED, f"qcow2: unknown compression type: {compression}", offset=_COMPRESSION_AT
        )
    return header._replace(
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        refcount_order=order,
        compression_type=compression,
        header_length=length,
        unknown=data[HEADER_LENGTH:length],
    )


def parse_extensions(data: bytes, start: int, end: int) -> tuple[Extension, ...]:
    """Read the extensions between two offsets; what is beyond the file is none.

    Raises:
        CorruptImage: One does not fit.
    """
    found: list[Extension] = []
    end = min(end, len(data))
    at = start
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(data, at)
        if kind == EXTENSION_END:
            break
        at += _EXTENSION.size
        if length > end - at:
            raise CorruptImage(Reason.BAD_VALUE, "Header extension too large", offset=at - 4)
        found.append(Extension(kind, data[at : at + length]))
        at += align_up(length, 8)
    return tuple(found)


def _refuse_features(header: Header) -> None:
    unknown = header.incompatible & ~KNOWN_INCOMPATIBLE
    if not unknown:
        return
    names = {bit: name for kind, bit, name in _feature_names(header) if kind == 0}
    names |= {bit: name for kind, bit, name in FEATURES if kind == 0}
    told = [names[bit] for bit in range(64) if unknown >> bit & 1 and bit in names]
    nameless = sum(1 << bit for bit in range(64) if unknown >> bit & 1 and bit not in names)
    if nameless:
        told.append(f"Unknown incompatible feature: {nameless:x}")
    kind = "not supported in this version of vblk" if unknown & (EXTERNAL_DATA | EXTENDED_L2) else ""
    text = f"Unsupported qcow2 feature(s): {', '.join(told)}"
    raise UnsupportedFeature(Reason.UNKNOWN_REQUIRED, f"{text} ({kind})" if kind else text, offset=72)


def _feature_names(header: Header) -> list[tuple[int, int, str]]:
    table = header.extension(EXTENSION_FEATURE_NAMES) or b""
    found: list[tuple[int, int, str]] = []
    for at in range(0, len(table) - _NAME.size + 1, _NAME.size):
        kind, bit, name = _NAME.unpack_from(table, at)
        text = name.split(b"\0")[0].decode("utf-8", "replace")
        if text.isprintable() and text:
            found.append((kind, bit, text))
    return found


def _check_tables(header: Header) -> None:
    """Check size and place of the three tables that the header names."""
    geometry = header.geometry
    if header.size > OFFSET_MAX:
        raise CorruptImage(Reason.LIMIT, "Image is too big", offset=24)
    table_size = header.refcount_table_clusters * geometry.cluster_size
    if not header.refcount_table_clusters:
        raise CorruptImage(Reason.BAD_VALUE, "Image does not contain a reference count table", offset=56)
    _check_table(geometry, "Reference count table", header.refcount_table_offset, table_size, 48)
    if table_size > COUNT_TABLE_SIZE_MAX:
        raise CorruptImage(Reason.LIMIT, "Reference count table too large", offset=56)
    if header.snapshots > SNAPSHOTS_MAX:
        raise CorruptImage(Reason.LIMIT, "Snapshot table too large", offset=60)
    if header.snapshots:
        _check_table(geometry, "Snapshot table", header.snapshots_offset, header.snapshots * 40, 64)
    if header.l1_size * ENTRY_SIZE > L1_SIZE_MAX:
        raise CorruptImage(Reason.LIMIT, "Active L1 table too large", offset=36)
    _check_table(geometry, "Active L1 table", header.l1_table_offset, header.l1_size * ENTRY_SIZE, 40)
    if geometry.l1_needed * ENTRY_SIZE > L1_SIZE_MAX:
        raise CorruptImage(Reason.LIMIT, "Image is too big", offset=24)
    if header.l1_size < geometry.l1_needed:
        raise CorruptImage(Reason.BAD_VALUE, "L1 table is too small", offset=36)


def _check_table(geometry: Geometry, name: str, offset: int, length: int, at: int) -> None:
    if offset % geometry.cluster_size or offset + length > OFFSET_MAX or (length and not offset):
        raise CorruptImage(Reason.BAD_VALUE, f"{name} offset invalid", offset=at)


def _backing_name(data: bytes, offset: int, length: int, cluster_size: int) -> str:
    if length > min(BACKING_NAME_MAX, cluster_size - offset):
        raise CorruptImage(Reason.BAD_VALUE, "Backing file name too long", offset=16)
    if offset + length > len(data):
        raise CorruptImage(Reason.TRUNCATED, "the file ends within the backing file's name", offset=len(data))
    return data[offset : offset + length].decode("utf-8", "surrogateescape")


def encode_header(header: Header) -> bytes:
    """Return the bytes with which the file begins, as far as they have a meaning.

    Raises:
        OptionError: The backing file's name does not fit into the first cluster.
    """
    cluster_size = 1 << header.cluster_bits
    extensions = b"".join(
        _EXTENSION.pack(each.type, len(each.data)) + each.data.ljust(align_up(len(each.data), 8), b"\0")
        for each in header.extensions
    ) + bytes(_EXTENSION.size)
    rest = b""
    if header.version >= 3:
        rest = _MORE.pack(
            header.incompatible,
            header.compatible,
            header.autoclear,
            header.refcount_order,
            header.header_length,
        )
        if header.header_length > _COMPRESSION_AT:
            rest += bytes((header.compression_type,)) + bytes(7) + header.unknown
    name = (header.backing_file or "").encode("utf-8", "surrogateescape")
    name_at = _BASE.size + len(rest) + len(extensions)
    if len(name) > BACKING_NAME_MAX or name_at + len(name) > cluster_size:
        raise OptionError("the qcow2 header has no room for the backing file's name")
    base = _BASE.pack(
        MAGIC,
        header.version,
        name_at if name else 0,
        len(name),
        header.cluster_bits,
        header.size,
        0,
        header.l1_size,
        header.l1_table_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.snapshots,
        header.snapshots_offset,
    )
    return base + rest + extensions + name


def feature_name_table() -> Extension:
    """Return the extension that names all features, for those who do not know one."""
    return Extension(
        EXTENSION_FEATURE_NAMES,
        b"".join(_NAME.pack(kind, bit, name.encode()) for kind, bit, name in FEATURES),
    )
