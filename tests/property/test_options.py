"""Names of images: hostile text gives only OptionError, and spellings agree."""

import json

from hypothesis import given
from hypothesis import strategies as st

from vblk.errors import OptionError
from vblk.options import (
    NodeOptions,
    format_size,
    from_mapping,
    parse_create_options,
    parse_filename,
    parse_image_opts,
    parse_json,
    parse_size,
    to_filename,
    to_json_filename,
)
from vblk.options.jsontext import parse_json_text

TEXT = st.text(max_size=80)
TRICKY = st.text(alphabet="{}[]:,.'\"\\u0dDc189eE+-xfileno=% \n", max_size=80)
NAMES = st.from_regex(r"[a-z][a-z-]{0,6}", fullmatch=True)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=10,
)


@given(TEXT | TRICKY | TRICKY.map("json:".__add__) | TEXT.map("blkdebug:".__add__))
def test_any_file_name_is_read_or_refused_with_an_option_error(text: str) -> None:
    try:
        name = to_filename(parse_filename(text))
    except OptionError:
        return
    assert name


@given(TEXT | TRICKY)
def test_any_list_is_read_or_refused_with_an_option_error(text: str) -> None:
    for read in (parse_image_opts, parse_create_options, parse_size):
        try:
            read(text)
        except OptionError:
            continue


@given(st.dictionaries(NAMES | TEXT, JSON, max_size=4))
def test_any_mapping_is_read_or_refused_with_an_option_error(mapping: dict[str, object]) -> None:
    try:
        from_mapping(mapping)
    except OptionError:
        return


@given(JSON, st.booleans())
def test_json_text_is_read_as_the_standard_reader_reads_it(value: object, ascii_only: bool) -> None:
    assert parse_json_text(json.dumps(value, ensure_ascii=ascii_only)) == value


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_a_single_quoted_string_means_what_a_double_quoted_one_means(text: str) -> None:
    quoted = json.dumps(text)
    single = "'" + quoted[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
    assert parse_json_text(single) == text


@st.composite
def nodes(draw: st.DrawFn, depth: int = 2) -> NodeOptions:
    own = draw(st.dictionaries(NAMES.map("own-".__add__), st.integers(0, 9) | PLAIN, max_size=2))
    node = NodeOptions(driver=draw(NAMES.map("x-".__add__)), own=dict(own))
    if depth:
        for name in draw(st.sets(st.sampled_from(["file", "backing", "image"]))):
            node.children[name] = draw(nodes(depth - 1))
    return node


@given(nodes())
def test_a_json_name_leads_back_to_the_same_node(node: NodeOptions) -> None:
    assert parse_json(to_json_filename(node).removeprefix("json:")) == node


@given(st.dictionaries(NAMES.map("own-".__add__), PLAIN, min_size=1, max_size=4))
def test_a_comma_list_carries_any_text(values: dict[str, str]) -> None:
    text = ",".join(f"{name}={value.replace(',', ',,')}" for name, value in values.items())
    assert parse_image_opts(text).own == values
    assert parse_create_options(text).values == values


@given(st.integers(0, 1 << 63))
def test_a_written_size_reads_back_within_its_three_digits(size: int) -> None:
    number, unit = format_size(size).split()
    if "e" not in number:
        assert abs(parse_size(number + unit[0]) - size) <= size / 200
