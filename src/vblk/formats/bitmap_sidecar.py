"""The file beside an image that keeps dirty bitmaps of its disk, for formats that cannot.

Owns: its layout, and what makes it impossible. Which image it is of, and whether that is
still what it was, is told by a text that is compared and not understood here.

    line    JSON: the version, the image's format, its identity, the disk's size in
            bytes, CRC-32C of what follows, and the bitmaps: name, granularity, whether
            they are enabled, whether they are in use, and the places of their bits
    bits    of all bitmaps, one place after the other: the lowest bit of a byte is the
            first; what has no place is zeros

A bitmap in use is one whose bits somebody has in memory: those of the file do not count.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from vblk.codec.crc32c import crc32c
from vblk.errors import CorruptImage, Reason
from vblk.units import KIB, MIB, align_up

VERSION: Final = 1
HEAD_MAX: Final = 16 * MIB
DATA_MAX: Final = 1024 * MIB
"""The most bytes of bits."""
COUNT_MAX: Final = 65535
PLACE: Final = 64 * KIB
"""The most bytes that are kept or left out together."""
GRANULARITY_BITS: Final = range(9, 32)


class KeptBitmap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One bitmap; `places` are (first byte of its bits, bytes)."""

    name: str
    granularity: int
    enabled: bool
    in_use: bool
    places: tuple[tuple[int, int], ...] = ()

    def describe(self) -> dict[str, object]:
        """Return what `info` shows of it, as of a qcow2 image's."""
        flags = [name for is_set, name in ((self.in_use, "in-use"), (self.enabled, "auto")) if is_set]
        return {"flags": flags, "name": self.name, "granularity": self.granularity}


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line."""

    version: int
    format: str
    identity: str
    size: int
    checksum: int
    bitmaps: tuple[KeptBitmap, ...]


class Content(NamedTuple):
    """What such a file says: `bits` are those of each bitmap, as (first byte, bytes)."""

    format: str
    identity: str
    size: int
    bitmaps: tuple[KeptBitmap, ...]
    bits: tuple[tuple[tuple[int, bytes], ...], ...]


def encode(
    format: str, identity: str, size: int, bitmaps: Sequence[tuple[KeptBitmap, Sequence[bytes]]]
) -> bytes:
    """Return the file's bytes; each bitmap comes with the bits of its places."""
    data = b"".join(piece for _, pieces in bitmaps for piece in pieces)
    head = Head(VERSION, format, identity, size, crc32c(data), tuple(kept for kept, _ in bitmaps))
    return msgspec.json.encode(head) + b"\n" + data


def decode(data: bytes) -> Content:
    """Return what the file says.

    Raises:
        CorruptImage: It cannot be right.
    """
    end = data.find(b"\n", 0, HEAD_MAX)
    if end < 0:
        raise _wrong("its first line does not end")
    try:
        head = msgspec.json.decode(data[:end], type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(f"its first line is not what it should be: {error}") from error
    if head.version != VERSION:
        raise _wrong(f"it is of version {head.version}")
    if crc32c(data[end + 1 :]) != head.checksum:
        raise _wrong("its checksum is wrong")
    names = {each.name for each in head.bitmaps}
    if len(head.bitmaps) > COUNT_MAX or len(names) < len(head.bitmaps) or head.size < 0:
        raise _wrong("it cannot have these bitmaps")
    at = end + 1
    found: list[tuple[tuple[int, bytes], ...]] = []
    for kept in head.bitmaps:
        pieces: list[tuple[int, bytes]] = []
        for start, length in _checked(kept, head.size):
            pieces.append((start, data[at : at + length]))
            at += length
        found.append(tuple(pieces))
    if at != len(data):
        raise _wrong("its bits are more or fewer than it says")
    return Content(head.format, head.identity, head.size, head.bitmaps, tuple(found))


def _checked(kept: KeptBitmap, size: int) -> Iterator[tuple[int, int]]:
    bits = kept.granularity.bit_length() - 1
    if bits not in GRANULARITY_BITS or kept.granularity != 1 << bits:
        raise _wrong(f"bitmap '{kept.name}' cannot have a granularity of {kept.granularity}")
    most = bits_length(size, kept.granularity)
    end = 0
    for start, length in kept.places:
        if not end <= start < start + length <= most or length > PLACE:
            raise _wrong(f"bitmap '{kept.name}' has bits in an impossible place")
        end = start + length
        yield start, length


def bits_length(size: int, granularity: int) -> int:
    """Return how many bytes the bits of a disk take."""
    return align_up(align_up(size, granularity) // granularity, 8) // 8


def _wrong(why: str) -> CorruptImage:
    return CorruptImage(Reason.BAD_VALUE, why)
