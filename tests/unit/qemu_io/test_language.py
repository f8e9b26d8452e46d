"""The io language: words, options, numbers and patterns, and the sentences for wrong ones."""

import pytest

from vblk.qemu_io.language import (
    REQUEST_MAX,
    Complaint,
    Misuse,
    parse_call,
    read_integer,
    read_lengths,
    read_number,
    read_pattern,
    require_sectors,
    split_line,
)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("   ", []),
        ("read 0 512", ["read", "0", "512"]),
        ("  read   0 512 ", ["read", "0", "512"]),
        ("read\t0", ["read\t0"]),
        ('write -P " 5"', ["write", "-P", '"', '5"']),
    ],
)
def test_a_line_is_cut_at_blanks_alone(line: str, words: list[str]) -> None:
    assert split_line(line) == words


@pytest.mark.parametrize(
    ("words", "options", "operands"),
    [
        (["x", "1", "2"], [], ["1", "2"]),
        (["x", "-a", "1"], [("a", "")], ["1"]),
        (["x", "-ab", "1"], [("a", ""), ("b", "")], ["1"]),
        (["x", "-P5", "1"], [("P", "5")], ["1"]),
        (["x", "-aP5", "1"], [("a", ""), ("P", "5")], ["1"]),
        (["x", "-aP", "5", "1"], [("a", ""), ("P", "5")], ["1"]),
        (["x", "1", "-a"], [("a", "")], ["1"]),
        (["x", "--", "-a"], [], ["-a"]),
        (["x", "-"], [], ["-"]),
        (["x", "-P", "-a"], [("P", "-a")], []),
        (["x", "-P=5"], [("P", "=5")], []),
    ],
)
def test_options_are_read_as_getopt_reads_them(
    words: list[str], options: list[tuple[str, str]], operands: list[str]
) -> None:
    call = parse_call(words, "abP:")
    assert (call.options, call.operands) == (options, operands)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["read", "-Z"], "read: invalid option -- 'Z'"),
        (["read", "-aZ"], "read: invalid option -- 'Z'"),
        (["read", "-:"], "read: invalid option -- ':'"),
        (["r", "-P"], "r: option requires an argument -- 'P'"),
        (["read", "--a"], "read: invalid option -- '-'"),
        (["read", "-1"], "read: invalid option -- '1'"),
    ],
)
def test_a_word_that_is_no_option_is_named(words: list[str], sentence: str) -> None:
    with pytest.raises(Misuse) as refused:
        parse_call(words, "abP:")
    assert str(refused.value) == sentence


def test_the_last_value_of_an_option_counts() -> None:
    call = parse_call(["x", "-P1", "-P2"], "P:")
    assert call.value("P") == "2"
    assert call.values("P") == ["1", "2"]
    assert call.value("Q") is None
    assert call.has("P")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("0x10", 16),
        ("010", 10),
        ("1k", 1024),
        ("1K", 1024),
        ("0.5k", 512),
        ("0.1k", 102),
        ("+5", 5),
        ("5.", 5),
        ("1b", 1),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_a_number_has_qemus_suffixes(text: str, value: int) -> None:
    assert read_number(text) == value


@pytest.mark.parametrize("text", ["x", "-1", "", "1kb", "1.5", "1e3", "0x", '"0"', "08x"])
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(Complaint) as refused:
        read_number(text)
    assert str(refused.value) == (
        f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
    )


@pytest.mark.parametrize("text", ["8E", "9223372036854775808", "18446744073709551616"])
def test_a_number_beyond_every_disk_is_named(text: str) -> None:
    with pytest.raises(Complaint) as refused:
        read_number(text)
    assert str(refused.value) == f"Parsing error: argument too large -- {text}"


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("010", 8), ("0xff", 255), ("+5", 5), ("-5", -5), (" 7", 7)]
)
def test_an_integer_is_read_as_c_reads_it(text: str, value: int) -> None:
    assert read_integer(text) == value


@pytest.mark.parametrize("text", ["", "1k", "0x1g", "0b1", "08", "x", "1 "])
def test_what_is_no_integer_is_none(text: str) -> None:
    assert read_integer(text) is None


@pytest.mark.parametrize("text", ["256", "-1", "x", "1k", "''", "0x100"])
def test_what_is_no_byte_is_no_pattern(text: str) -> None:
    with pytest.raises(Complaint) as refused:
        read_pattern(text)
    assert str(refused.value) == f"{text} is not a valid pattern byte"


def test_lengths_add_up_to_at_most_a_request() -> None:
    assert read_lengths(["1k", "512"]) == 1536
    assert read_lengths([str(REQUEST_MAX)]) == REQUEST_MAX
    with pytest.raises(Complaint, match=f"Argument '3G' exceeds maximum size {REQUEST_MAX}"):
        read_lengths(["3G"])
    with pytest.raises(Complaint, match=f"total number of bytes exceed the maximum size {REQUEST_MAX}"):
        read_lengths(["1G", "1G"])


def test_sectors_are_demanded_by_name() -> None:
    require_sectors(1024, "offset")
    with pytest.raises(Complaint, match="100 is not a sector-aligned value for 'count'"):
        require_sectors(100, "count")
