"""Values of options: what is read, and QEMU's words for what is not."""

import pytest

from vblk.cli.creation import read_options
from vblk.cli.failure import Failure, could_not_open, exit_status, sentence
from vblk.cli.snapshots import check_snapshot_name
from vblk.cli.values import NumberType, PathMapType, bounded_size
from vblk.errors import ImageError, OptionError, Reason, StorageError


def lines_of(call: object) -> tuple[str, ...]:
    assert callable(call)
    with pytest.raises(Failure) as caught:
        call()
    return caught.value.lines


def test_a_size_is_read_with_its_suffix() -> None:
    assert bounded_size("1.5K", "image size") == 1536
    assert bounded_size("0x10", "image size") == 16


@pytest.mark.parametrize("text", ["", "x", "1x", "-1", "1Mfoo", "1e3"])
def test_what_is_no_size_is_refused_with_the_list_of_suffixes(text: str) -> None:
    first, second = lines_of(lambda: bounded_size(text, "image size"))
    assert first == "Invalid image size specified. You may use k, M, G, T, P or E suffixes for"
    assert second.startswith("kilobytes, megabytes")


@pytest.mark.parametrize("text", ["8E", "9E", "16383P", "99999999999999999999999"])
def test_a_size_beyond_its_bounds_is_refused_with_the_bounds(text: str) -> None:
    (line,) = lines_of(lambda: bounded_size(text, "image size"))
    assert line == "Invalid image size specified. Must be between 0 and 9223372036854775807."


@pytest.mark.parametrize("text", ["x", "0", "17", ""])
def test_a_number_outside_its_bounds_gets_its_own_sentence(text: str) -> None:
    kind = NumberType("Invalid number of coroutines", 1, 16)
    assert lines_of(lambda: kind.convert(text, None, None)) == ("Invalid number of coroutines",)


def test_a_path_map_is_cut_at_its_first_equals_sign() -> None:
    assert PathMapType().convert("D:\\a=/mnt/b=c", None, None) == ("D:\\a", "/mnt/b=c")
    for text in ("D:\\a", "=x", "x="):
        assert lines_of(lambda text=text: PathMapType().convert(text, None, None))


@pytest.mark.parametrize("text", ["", ",", ",a"])
def test_a_malformed_option_list_is_named(text: str) -> None:
    assert lines_of(lambda: read_options((text,))) == (f"Invalid option list: {text}",)


def test_a_snapshot_parameter_that_is_none_is_named() -> None:
    check_snapshot_name("any text")
    check_snapshot_name("snapshot.name=a")
    assert lines_of(lambda: check_snapshot_name("snapshot.foo=bar")) == (
        "Invalid parameter 'snapshot.foo'",
        "Failed in parsing snapshot param 'snapshot.foo=bar'",
    )


def test_a_failure_of_compare_is_not_taken_for_a_difference() -> None:
    assert exit_status("compare", OptionError("no")) == 2
    assert exit_status("info", OptionError("no")) == 1
    assert exit_status("check", Failure("no", status=63)) == 63


def test_an_error_names_its_file_once() -> None:
    assert sentence(OptionError("bad", filename="a")) == "a: bad"
    assert sentence(OptionError("'a' is bad", filename="a")) == "'a' is bad"
    error = ImageError(Reason.TRUNCATED, "too short", filename="a", offset=16)
    assert could_not_open("a", error).lines == ("Could not open 'a': too short (offset 0x10)",)
    inner = StorageError(2, "Could not open 'b': No such file or directory", filename="b")
    assert could_not_open("a", inner).lines == (
        "Could not open 'a': Could not open 'b': No such file or directory",
    )
