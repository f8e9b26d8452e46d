"""The JSON dialect of the command line: what it takes, and the words in which it refuses."""

import pytest

from vblk.errors import OptionError
from vblk.options.jsontext import DEPTH_MAX, TEXT_MAX, Json, parse_json_text

VALUES: list[tuple[str, Json]] = [
    ('{"a": 1}', {"a": 1}),
    (" {'a': \"b\"}\r\n", {"a": "b"}),
    ("{'a\"b': '\"'}", {'a"b': '"'}),
    ('{"a": "it\'s"}', {"a": "it's"}),
    (r"""{'a': 'it\'s \"x\"'}""", {"a": 'it\'s "x"'}),
    (r'"\b\f\n\r\t\/\\"', "\b\f\n\r\t/\\"),
    (r'"\u0078\u00e9\u20AC"', "xé€"),
    (r'"\ud83d\uDE00!"', "\U0001f600!"),
    (r'"\\u0078"', r"\u0078"),
    ('"%s"', "%s"),
    ("[]", []),
    ("[true, false, null, [ ], {}]", [True, False, None, [], {}]),
    ("-0", 0),
    ("18446744073709551615", 18446744073709551615),
    ("-9223372036854775808", -9223372036854775808),
    ("18446744073709551616", 18446744073709551616.0),
    ("1e3", 1000.0),
    ("1.5E-1", 0.15),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_a_value_is_read(text: str, value: Json) -> None:
    read = parse_json_text(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "premature EOI"),
        ("[1", "premature EOI"),
        ('{"a"', "premature EOI"),
        ('{"a":', "premature EOI"),
        ('{"a":"x",', "premature EOI"),
        ("x", "invalid keyword 'x'"),
        ('{"a":tru}', "invalid keyword 'tru'"),
        ("{driver:1}", "invalid keyword 'driver'"),
        ('{"a":01}', "stray '01'"),
        ('{"a":-}', "stray '-}'"),
        ('{"a":1.}', "stray '1.}'"),
        ('{"a":1e}', "stray '1e}'"),
        ('{"a":.5}', "stray '.'"),
        ('{"a":+1}', "stray '+'"),
        ('{"a":NaN}', "stray 'N'"),
        ('{"a":/*x*/1}', "stray '/'"),
        ("%s", "stray '%'"),
        ('{"a":"b', "stray '\"b'"),
        ("{'a':'b\" ", "stray ''b\" '"),
        ('"\n"', "stray '\"\n'"),
        ('"\\', "stray '\"\\'"),
        ('"\\x"', "invalid escape sequence in string"),
        ('"\\ud800"', "\\ud800 is not a valid Unicode character"),
        ('"\\ud800\\u0041"', "\\ud800 is not a valid Unicode character"),
        ('"\\udc00"', "\\udc00 is not a valid Unicode character"),
        ('"\\ue9zz"', "\\ue9zz is not a valid Unicode character"),
        ('"\\u0000"', "\\u0000 is not a valid Unicode character"),
        ('{"a":1,}', "expecting value"),
        ("{,}", "expecting value"),
        ("[1,]", "expecting value"),
        ("]", "expecting value"),
        ("{1:1}", "key is not a string in object"),
        ('{"a" 1}', "missing : in object pair"),
        ('{"a":1 "b":2}', "expected separator in dict"),
        ('{"a":0x10}', "expected separator in dict"),
        ("[1 2]", "expected separator in list"),
        ("{'a':1,'a':1}", "duplicate key"),
    ],
)
def test_a_fault_is_named_in_qemus_words(text: str, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_json_text(text)
    assert caught.value.message == f"Could not parse the JSON options: JSON parse error, {reason}"


@pytest.mark.parametrize("text", ["", " \t\n"])
def test_nothing_is_not_a_value(text: str) -> None:
    with pytest.raises(OptionError, match="Expecting a JSON value"):
        parse_json_text(text)


@pytest.mark.parametrize("text", ["{}{}", "{} x", '{"a":1}}'])
def test_one_value_is_enough(text: str) -> None:
    with pytest.raises(OptionError, match="Expecting at most one JSON value"):
        parse_json_text(text)


def test_the_nesting_is_limited() -> None:
    parse_json_text("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    with pytest.raises(OptionError, match="nested deeper than 64"):
        parse_json_text("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1))
    with pytest.raises(OptionError, match="nested deeper than 64"):
        parse_json_text('{"a":' * 100_000)


def test_the_length_is_limited() -> None:
    with pytest.raises(OptionError, match="longer than 1048576 characters"):
        parse_json_text('"' + "x" * TEXT_MAX)


def test_numbers_of_any_length_are_bounded_work() -> None:
    assert parse_json_text("9" * 100_000) == float("inf")
    with pytest.raises(OptionError, match="stray"):
        parse_json_text("0" * 100_000)


def test_a_stray_string_is_quoted_only_in_part() -> None:
    with pytest.raises(OptionError) as caught:
        parse_json_text('"' + "x" * 10_000)
    assert len(caught.value.message) < 200
