"""Sizes, numbers and switches, as QEMU's tools read and print them."""

import pytest

from vblk.errors import OptionError
from vblk.options import SizeTooLarge, format_size, parse_bool, parse_number, parse_size

K, M, G, E = 1 << 10, 1 << 20, 1 << 30, 1 << 60


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1b", 1),
        ("1B", 1),
        ("1.0b", 1),
        ("5.", 5),
        ("010", 10),
        (" 1", 1),
        ("+1k", K),
        ("1k", K),
        ("1K", K),
        ("5.k", 5 * K),
        ("1.5G", 3 * G // 2),
        ("0.1k", 102),
        ("0.9999999999k", K),
        ("1.00048828125k", 1025),
        ("7E", 7 * E),
        ("7.99999E", 9223360507639729792),
        ("0x10", 16),
        ("0X1f", 31),
        ("0x10k", 16 * K),
        ("0x10E", 0x10E),
        ("18446744073709551615", (1 << 64) - 1),
    ],
)
def test_a_size_is_read_as_qemu_reads_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "1.5",
        "1.5b",
        ".5k",
        "0x",
        "0xg",
        "0x1.8k",
        "1e3",
        "1kk",
        "1kB",
        "1 ",
        "1_0",
        "1,5",
        "-1",
        "nan",
        "²",
    ],
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_size(text)
    assert not isinstance(caught.value, SizeTooLarge)


@pytest.mark.parametrize("text", ["16E", "18446744073709551616", "9" * 30, "0xfffffffffffffffff"])
def test_a_size_above_64_bits_is_told_apart(text: str) -> None:
    with pytest.raises(SizeTooLarge):
        parse_size(text)


def test_a_number_without_suffix_counts_in_the_default_unit() -> None:
    assert parse_size("3", M) == 3 * M
    assert parse_size("1.5", M) == 3 * M // 2
    assert parse_size("3k", M) == 3 * K
    assert parse_size("0x2", M) == 2 * M


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10000, "9.77 KiB"),
        (1022976, "999 KiB"),
        (1023488, "1e+03 KiB"),
        (1024000, "0.977 MiB"),
        (1047552, "0.999 MiB"),
        (105000448, "100 MiB"),
        (10000000000, "9.31 GiB"),
        (1 << 43, "8 TiB"),
        (1124774006935781888, "999 PiB"),
        (1125899906842624000, "0.977 EiB"),
        (1 << 63, "8 EiB"),
    ],
)
def test_a_size_is_written_with_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_switches_are_lower_case_words() -> None:
    assert [parse_bool(word) for word in ("on", "yes", "true", "y")] == [True] * 4
    assert [parse_bool(word) for word in ("off", "no", "false", "n")] == [False] * 4


@pytest.mark.parametrize("word", ["ON", "1", "0", "", "True", "enable"])
def test_other_words_are_no_switch(word: str) -> None:
    with pytest.raises(OptionError):
        parse_bool(word)


def test_numbers_are_decimal_or_hexadecimal() -> None:
    assert [parse_number(text) for text in ("7", "-7", "0x1F", "08")] == [7, -7, 31, 8]


@pytest.mark.parametrize("text", ["", "x", "1.5", "1k", "--1", "1" * 41])
def test_what_is_not_a_number_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_number(text)
