"""Headers and keys: what comes back, and what is refused before a passphrase is tried."""

import random
import struct
from contextlib import suppress

import pytest

from vblk.errors import CorruptImage, ImageError, UnsupportedFeature, WrongFormat
from vblk.formats.luks import HEADER_LENGTH, CipherSpec, parse_header, plan_header, unlock
from vblk.formats.luks.header import ITERATIONS_MAX, STRIPES
from vblk.formats.luks.keys import material_length, merge, split

SPEC = CipherSpec("aes", "xts", "plain64", "", 64)
SIZE = 4 << 20
NEW = plan_header(SPEC, "sha256", b"open sesame", 1, random.Random(1).randbytes)
SLOT = 208


def changed(offset: int, value: bytes) -> bytes:
    data = bytearray(NEW.header.encode())
    data[offset : offset + len(value)] = value
    return bytes(data)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def test_a_header_is_read_as_it_was_written() -> None:
    data = NEW.header.encode()
    assert len(data) == HEADER_LENGTH == 592
    assert parse_header(data, SIZE) == NEW.header
    assert (NEW.header.payload_offset, NEW.header.slots[7].key_offset) == (2068480, 1810432)


def test_the_passphrase_unlocks_and_others_do_not() -> None:
    slot = NEW.header.slots[0]
    key = unlock(NEW.header, slot, NEW.material, b"open sesame")
    assert key is not None
    assert len(key) == 64
    assert unlock(NEW.header, slot, NEW.material, b"open barley") is None
    spoilt = bytearray(NEW.material)
    spoilt[100_000] ^= 1
    assert unlock(NEW.header, slot, bytes(spoilt), b"open sesame") is None


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("length", [16, 32, 64])
def test_a_key_that_was_split_is_whole_only_with_every_stripe(hash_name: str, length: int) -> None:
    key = random.Random(2).randbytes(length)
    stripes = split(key, hash_name, random.Random(3).randbytes)
    assert len(stripes) == length * STRIPES
    assert merge(stripes, length, hash_name) == key
    for at in (0, len(stripes) // 2, len(stripes) - 1):
        broken = bytearray(stripes)
        broken[at] ^= 0x80
        assert merge(bytes(broken), length, hash_name) != key


def test_key_material_takes_whole_sectors() -> None:
    assert [material_length(length) for length in (16, 24, 64)] == [64000, 96256, 256000]


BAD: dict[str, tuple[bytes, type[ImageError], int]] = {
    "magic": (changed(5, b"\xbf"), WrongFormat, 0),
    "short": (NEW.header.encode()[:591], CorruptImage, 0),
    "version-2": (changed(6, b"\0\2"), UnsupportedFeature, 6),
    "cipher-without-end": (changed(8, b"a" * 32), CorruptImage, 8),
    "mode-without-end": (changed(40, b"a" * 32), CorruptImage, 40),
    "mode-with-escape": (changed(40, b"\x1b[31m"), CorruptImage, 40),
    "hash-not-ascii": (changed(72, b"\xff"), CorruptImage, 72),
    "payload-in-header": (changed(104, number(1)), CorruptImage, 104),
    "payload-beyond-file": (changed(104, number(SIZE // 512 + 1)), CorruptImage, 104),
    "digest-iterations-0": (changed(164, number(0)), CorruptImage, 164),
    "digest-iterations-huge": (changed(164, number(ITERATIONS_MAX + 1)), CorruptImage, 164),
    "slot-state": (changed(SLOT, number(7)), CorruptImage, SLOT),
    "slot-iterations-0": (changed(SLOT + 4, number(0)), CorruptImage, SLOT + 4),
    "slot-iterations-huge": (changed(SLOT + 4, number(0xFFFFFFFF)), CorruptImage, SLOT + 4),
    "slot-in-header": (changed(SLOT + 40, number(1)), CorruptImage, 512),
    "slot-in-payload": (changed(SLOT + 40, number(4000)), CorruptImage, SLOT + 40),
    "slot-stripes": (changed(SLOT + 44, number(3999)), CorruptImage, SLOT + 44),
    "slots-overlap": (
        changed(SLOT + 48, struct.pack(">II32sII", 0x00AC71F3, 1000, b"", 100, STRIPES)), CorruptImage, 51200,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_refused_with_its_place(case: str) -> None:
    data, kind, offset = BAD[case]
    with pytest.raises(kind) as caught:
        parse_header(data, SIZE)
    assert caught.value.offset == offset


def test_whatever_the_bytes_only_typed_errors_come_out() -> None:
    dice = random.Random(4)
    for _ in range(2000):
        data = bytearray(NEW.header.encode())
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(HEADER_LENGTH)] = dice.randrange(256)
        with suppress(ImageError):
            parse_header(bytes(data), SIZE)
