"""The bitmaps extension of a qcow2 image: dirty bitmaps of its disk, kept while nobody has it open.

Owns: the directory, the tables of its bitmaps, and what makes them impossible.

    extension   0 bitmaps | 4 reserved | 8 bytes of the directory | 16 its offset
    directory   one entry behind the other, each padded to 8 bytes:
                0 table offset | 8 its entries | 12 flags | 16 type | 17 granularity
                bits | 18 length of the name | 20 of the extra data | both
    table       8 bytes a cluster of the bitmap: 55-9 its offset, or without one
                bit 0: all ones, else all zeros

Autoclear bit 0 says that the extension counts: who does not know it clears that.
IN_USE says that the bitmap in the file is not what it should be.

Source: docs/interop/qcow2.txt, "Bitmaps extension", "Bitmaps".
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from vblk.errors import CorruptImage, Reason
from vblk.formats.qcow2.header import Extension, Header
from vblk.formats.qcow2.image import ReadAt
from vblk.formats.qcow2.layout import BITMAPS, ENTRY_SIZE, EXTENSION_BITMAPS, FILE_OFFSET_MAX, OFFSET_MASK
from vblk.units import MIB, align_up

_EXTENSION = struct.Struct(">IIQQ")
_ENTRY = struct.Struct(">QIIBBHI")
IN_USE: Final = 1
AUTO: Final = 2
_FLAGS_KNOWN: Final = IN_USE | AUTO
_TYPE: Final = 1
_ALL_ONES: Final = 1
COUNT_MAX: Final = 65535
DIRECTORY_MAX: Final = 64 * MIB
DATA_MAX: Final = 1024 * MIB
"""The most bytes that all bitmaps of an image are loaded from."""
NAME_MAX: Final = 1023
GRANULARITY_BITS: Final = range(9, 32)


class StoredBitmap(NamedTuple):
    """One entry of the directory."""

    name: str
    granularity_bits: int
    flags: int
    table_offset: int
    table_size: int
    type: int = _TYPE
    extra: bytes = b""

    @property
    def in_use(self) -> bool:
        """Whether what the file has of it is not to be trusted."""
        return bool(self.flags & IN_USE)

    def describe(self) -> dict[str, object]:
        """Return what `info` shows of it, in QEMU's order."""
        named = ((IN_USE, "in-use"), (AUTO, "auto"))
        return {
            "flags": [name for flag, name in named if self.flags & flag],
            "name": self.name,
            "granularity": 1 << self.granularity_bits,
        }


class Directory(NamedTuple):
    """The bitmaps of an image, and where that stands."""

    bitmaps: tuple[StoredBitmap, ...] = ()
    offset: int = 0
    length: int = 0


async def read_directory(read: ReadAt, header: Header) -> Directory:
    """Read the directory; it is empty where the image has none that counts.

    Raises:
        CorruptImage: It does not hold what its extension says.
    """
    extension = header.extension(EXTENSION_BITMAPS)
    if extension is None or not header.autoclear & BITMAPS:
        return Directory()
    if len(extension) != _EXTENSION.size:
        raise CorruptImage(Reason.BAD_VALUE, "bitmaps_ext: Invalid extension length")
    count, _, length, offset = _EXTENSION.unpack(extension)
    if not 0 < count <= COUNT_MAX:
        raise CorruptImage(Reason.LIMIT, f"bitmaps_ext: the image cannot have {count} bitmaps")
    if length > DIRECTORY_MAX or not offset or offset % (1 << header.cluster_bits):
        raise CorruptImage(
            Reason.LIMIT, "bitmaps_ext: the directory is too long, or out of place", offset=offset
        )
    data = await read(offset, length)
    found: list[StoredBitmap] = []
    at = 0
    for _ in range(count):
        bitmap, size = _parse_entry(data[at:], offset + at, header)
        found.append(bitmap)
        at += size
    if at != length or len({each.name for each in found}) < count:
        raise CorruptImage(Reason.BAD_VALUE, "the bitmap directory does not fit its bitmaps", offset=offset)
    return Directory(tuple(found), offset, length)


def _parse_entry(data: bytes, offset: int, header: Header) -> tuple[StoredBitmap, int]:
    if len(data) >= _ENTRY.size:
        table, entries, flags, kind, bits, name_length, extra = _ENTRY.unpack_from(data)
        end = _ENTRY.size + extra + name_length
        if end <= len(data):
            name = data[_ENTRY.size + extra : end].decode("utf-8", "surrogateescape")
            bitmap = StoredBitmap(
                name, bits, flags, table, entries, kind, data[_ENTRY.size : end - name_length]
            )
            _check(bitmap, offset, header)
            return bitmap, align_up(end, 8)
    raise CorruptImage(Reason.TRUNCATED, "the bitmap directory is too short", offset=offset)


def _check(bitmap: StoredBitmap, offset: int, header: Header) -> None:
    """Raise CorruptImage when an entry cannot be right, or is of a kind that nobody knows here."""
    needed = table_entries(header, bitmap.granularity_bits) if bitmap.granularity_bits < 64 else 0
    wrong = (
        bitmap.flags & ~_FLAGS_KNOWN
        or bitmap.extra
        or bitmap.type != _TYPE
        or not 0 < len(bitmap.name.encode("utf-8", "surrogateescape")) <= NAME_MAX
        or bitmap.granularity_bits not in GRANULARITY_BITS
        or bitmap.table_offset % (1 << header.cluster_bits)
        or bitmap.table_offset >= FILE_OFFSET_MAX
        or bool(bitmap.table_offset) != bool(bitmap.table_size)
        or bitmap.table_size * ENTRY_SIZE > DATA_MAX
        or (not bitmap.in_use and bitmap.table_size < needed)
    )
    if wrong:
        raise CorruptImage(
            Reason.BAD_VALUE, f"Bitmap '{bitmap.name}' doesn't satisfy the constraints", offset=offset
        )


def table_entries(header: Header, granularity_bits: int) -> int:
    """Return how many clusters a bitmap of the disk takes."""
    bits = -(-header.size >> granularity_bits)
    return -(-bits // (8 << header.cluster_bits))


def encode_directory(bitmaps: Sequence[StoredBitmap]) -> bytes:
    """Return the bytes of a directory."""
    parts: list[bytes] = []
    for each in bitmaps:
        name = each.name.encode("utf-8", "surrogateescape")
        fixed = _ENTRY.pack(
            each.table_offset,
            each.table_size,
            each.flags,
            each.type,
            each.granularity_bits,
            len(name),
            len(each.extra),
        )
        entry = fixed + each.extra + name
        parts.append(entry.ljust(align_up(len(entry), 8), b"\0"))
    return b"".join(parts)


def with_directory(header: Header, directory: Directory) -> Header:
    """Return the header of an image that has these bitmaps, or none."""
    kept = tuple(each for each in header.extensions if each.type != EXTENSION_BITMAPS)
    if not directory.bitmaps:
        return header._replace(extensions=kept, autoclear=header.autoclear & ~BITMAPS)
    data = _EXTENSION.pack(len(directory.bitmaps), 0, directory.length, directory.offset)
    return header._replace(
        extensions=(*kept, Extension(EXTENSION_BITMAPS, data)), autoclear=header.autoclear | BITMAPS
    )


async def read_table(read: ReadAt, header: Header, bitmap: StoredBitmap) -> list[int | None]:
    """Return the file offset of each cluster of a bitmap; 0: all zeros, None: all ones.

    Raises:
        CorruptImage: An entry cannot be right.
    """
    data = await read(bitmap.table_offset, bitmap.table_size * ENTRY_SIZE)
    if len(data) < bitmap.table_size * ENTRY_SIZE:
        raise CorruptImage(
            Reason.TRUNCATED,
            f"the file ends within the table of bitmap '{bitmap.name}'",
            offset=bitmap.table_offset,
        )
    places: list[int | None] = []
    for entry in struct.unpack(f">{bitmap.table_size}Q", data):
        place = entry & OFFSET_MASK
        if place % (1 << header.cluster_bits) or entry & ~OFFSET_MASK & ~(0 if place else _ALL_ONES):
            raise CorruptImage(
                Reason.BAD_VALUE,
                f"Bitmap '{bitmap.name}' has a table entry that cannot be: {entry:#x}",
                offset=bitmap.table_offset,
            )
        places.append(None if entry == _ALL_ONES else place)
    return places


def encode_table(places: Sequence[int | None]) -> bytes:
    """Return the bytes of a table, from what `read_table` returns."""
    return struct.pack(f">{len(places)}Q", *(_ALL_ONES if place is None else place for place in places))
