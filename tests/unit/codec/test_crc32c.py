"""The checksum: known values, and the portable way against the chosen one."""

import random

import pytest

from vblk.codec.crc32c import crc32c, crc32c_without, extend, extend_portable


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_known_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert extend_portable(0, data) == expected


@pytest.mark.parametrize("length", [1, 63, 64, 65, 4096, 65537])
def test_the_jump_over_zeros_equals_the_walk(length: int) -> None:
    data = b"head" + bytes(length) + b"tail" + bytes(length)
    assert extend_portable(0, data) == crc32c(data)


def test_pieces_give_the_whole() -> None:
    chance = random.Random(7)
    data = chance.randbytes(1000) + bytes(500) + chance.randbytes(10)
    for cut in (0, 1, 999, 1200, len(data)):
        assert extend(crc32c(data[:cut]), data[cut:]) == crc32c(data)
        assert extend_portable(extend_portable(0, data[:cut]), data[cut:]) == crc32c(data)


def test_the_checksum_field_counts_as_zero() -> None:
    assert crc32c_without(b"head\xaa\xbb\xcc\xddrest", 4) == crc32c(b"head\0\0\0\0rest")
