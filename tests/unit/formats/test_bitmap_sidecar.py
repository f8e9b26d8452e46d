"""The file that keeps bitmaps beside an image: what it says, and what it cannot say."""

import json
import random

import pytest

from vblk.codec.crc32c import crc32c
from vblk.errors import CorruptImage
from vblk.formats.bitmap_sidecar import KeptBitmap, bits_length, decode, encode
from vblk.units import GIB, KIB

BITMAPS = [
    (KeptBitmap("a", 64 * KIB, True, False, ((0, 3), (100, 2))), (b"\x01\x00\x80", b"\xff\xff")),
    (KeptBitmap("b", 512, False, True), ()),
]


def file_of(places: object = ((0, 3),), data: bytes = b"abc", **other: object) -> bytes:
    """Return the bytes of a file with one bitmap."""
    bitmap = {"name": "a", "granularity": 65536, "enabled": True, "in_use": False, "places": places}
    head: dict[str, object] = {
        "version": 1,
        "format": "raw",
        "identity": "i",
        "size": GIB,
        "checksum": crc32c(data),
    }
    head["bitmaps"] = [bitmap | {name: other.pop(name) for name in list(other) if name in bitmap}]
    return json.dumps(head | other).encode() + b"\n" + data


def test_what_was_written_is_read() -> None:
    content = decode(encode("vhdx", "who it is", GIB, BITMAPS))
    assert content[:3] == ("vhdx", "who it is", GIB)
    assert content.bitmaps == tuple(kept for kept, _ in BITMAPS)
    assert content.bits == (((0, b"\x01\x00\x80"), (100, b"\xff\xff")), ())


@pytest.mark.parametrize(("size", "length"), [(0, 0), (1, 1), (64 * KIB * 8, 1), (64 * KIB * 8 + 1, 2)])
def test_the_bits_of_a_disk_take_whole_bytes(size: int, length: int) -> None:
    assert bits_length(size, 64 * KIB) == length


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no line",
        b"{}\n",
        b"\xff\xfe\n",
        file_of(version=2),
        file_of(checksum=1),
        file_of(size=-1),
        file_of(data=b"abcd"),
        file_of(data=b"ab"),
        file_of(places=((2047, 3),)),
        file_of(places=((-1, 3),)),
        file_of(places=((0, 2), (1, 1))),
        file_of(places=((0, 0), (0, 3))),
        file_of(granularity=3),
        file_of(granularity=0),
        file_of(granularity=-512),
        file_of(granularity=1 << 40),
        file_of(name=7),
        file_of(more=1),
    ],
    ids=range(19),
)
def test_what_cannot_be_is_refused(data: bytes) -> None:
    assert decode(file_of())
    with pytest.raises(CorruptImage):
        decode(data)


def test_no_garbage_is_anything_but_refused() -> None:
    lot = random.Random(3)
    whole = encode("raw", "i", GIB, BITMAPS)
    for _ in range(400):
        data = bytearray(whole)
        data[lot.randrange(len(data))] ^= 1 << lot.randrange(8)
        data = data[: lot.choice((len(data), lot.randrange(len(data))))]
        try:
            decode(bytes(data))
        except CorruptImage:
            continue
