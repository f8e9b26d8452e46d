"""Comma lists: escapes, bare names and requests for help."""

import pytest

from vblk.errors import OptionError
from vblk.options import parse_create_options
from vblk.options.keyval import TEXT_MAX, Pair, split_pairs


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("a=b", [Pair("a", "b")]),
        ("a=b,c=d=e", [Pair("a", "b"), Pair("c", "d=e")]),
        ("a=x,,y", [Pair("a", "x,y")]),
        ("a=x,,,b=", [Pair("a", "x,"), Pair("b", "")]),
        ("a=x,,,,y", [Pair("a", "x,,y")]),
        ("a=x,", [Pair("a", "x")]),
        ("a=x,,", [Pair("a", "x,")]),
        ("=x", [Pair("", "x")]),
        ("a", [Pair("a", "on", short=True)]),
        ("noa,b", [Pair("a", "off", short=True), Pair("b", "on", short=True)]),
    ],
)
def test_a_list_is_cut_at_single_commas(text: str, pairs: list[Pair]) -> None:
    assert split_pairs(text) == pairs


def test_a_first_bare_value_belongs_to_the_implied_name() -> None:
    assert split_pairs("x,y", implied="file") == [Pair("file", "x"), Pair("y", "on", short=True)]
    assert split_pairs("a=x", implied="file") == [Pair("a", "x")]


def test_a_list_that_cannot_come_from_a_command_line_is_refused() -> None:
    with pytest.raises(OptionError, match="NUL"):
        split_pairs("a=\0")
    with pytest.raises(OptionError, match="longer than"):
        split_pairs("a" * (TEXT_MAX + 1))


def test_a_later_create_option_replaces_an_earlier_one() -> None:
    options = parse_create_options(["size=1M,nocow=on", "size=2M", "nonocow"])
    assert options.values == {"size": "2M", "nocow": "off"}
    assert not options.wants_help


@pytest.mark.parametrize("text", ["help", "?", "size=1M,help", "help,size=1M", "size=1M,?"])
def test_help_is_asked_for_by_its_own_element(text: str) -> None:
    assert parse_create_options(text).wants_help


@pytest.mark.parametrize("text", ["helpx", "size=1M,,help", "size=1M?", "help=on"])
def test_help_inside_another_element_asks_for_nothing(text: str) -> None:
    assert not parse_create_options(text).wants_help


@pytest.mark.parametrize("text", ["", ",", ",,", ",size=1M", "size=1M,", "size=1M,,,"])
def test_a_list_with_an_empty_end_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_create_options(["a=1", text])
    assert caught.value.message == f"Invalid option list: {text}"
