"""Values and faults come out of a client's bytes as they come out of QEMU."""

import pytest

from vblk.wire.qmp.stream import TOKENS_MAX, VALUE_MAX, JsonStream


def items(*pieces: bytes) -> list[object]:
    """Return the values, and the sentences about faults, of a stream that comes in pieces."""
    stream = JsonStream()
    return [
        value if fault is None else f"!{fault}" for piece in pieces for value, fault in stream.feed(piece)
    ]


def test_several_values_come_out_of_one_read() -> None:
    assert items(b'{"a": 1} {"b": [2, {"c": null}]}\r\n[]{}') == [{"a": 1}, {"b": [2, {"c": None}]}, [], {}]


@pytest.mark.parametrize(
    "text",
    [
        rb'{"execute": "x", "id": "a\"b\\", "arguments": {"n": -1.5e3, "l": [true, false, null, 12]}}',
        '{\'single\': \'quo"ted\', "snow": "\u2603", "pair": "\\ud83d\\ude00"}\n'.encode(),
        b"[1, 2] 'text' 17 true ",
    ],
)
def test_where_the_bytes_are_cut_does_not_matter(text: bytes) -> None:
    whole = items(text + b"\n")
    assert len(whole) > 0
    assert items(*(bytes([byte]) for byte in text + b"\n")) == whole
    assert [items(text[:cut], text[cut:] + b"\n") for cut in range(len(text))] == [whole] * len(text)


FAULTS: list[tuple[bytes, list[object]]] = [
    (b'{"execute": "query-version" ]', ["!JSON parse error, expected separator in dict"]),
    (b"{} }", [{}, "!JSON parse error, expecting value"]),
    (b"garbage\n", ["!JSON parse error, invalid keyword 'garbage'"]),
    (b'{"a":1,}', ["!JSON parse error, expecting value"]),
    (b'{"id":01}', ["!JSON parse error, stray '01'", "!JSON parse error, expecting value"]),
    (b'{"id":"\\ud800"}', ["!JSON parse error, \\ud800 is not a valid Unicode character"]),
    (b'{"a":1,"a":2}', ["!JSON parse error, duplicate key"]),
    (b"@\n", ["!JSON parse error, stray '@'"]),
    (b"{1:2}", ["!JSON parse error, key is not a string in object"]),
    (b'{"a"}', ["!JSON parse error, missing : in object pair"]),
    (b"%s\n", ["!JSON parse error, stray '%'"]),
    (b'{"a":"\xff"}', ["!JSON parse error, stray '\"\ufffd'", "!JSON parse error, expecting value"]),
    (b'{"a":"\x80"}', ["!JSON parse error, invalid UTF-8 sequence in string"]),
    (b"{}\0", [{}, "!JSON parse error, stray ''"]),
    (b"\xff{}", ["!JSON parse error, stray '\ufffd'", {}]),
    (b'"a\tb"\n', ["!JSON parse error, stray '\"a\t'"]),
    (b"-\n", ["!JSON parse error, stray '-\n'"]),
]


@pytest.mark.parametrize(("text", "said"), FAULTS)
def test_faults_are_told_in_the_words_of_qemu(text: bytes, said: list[object]) -> None:
    assert items(text)[: len(said)] == said


def test_the_stream_goes_on_after_a_fault() -> None:
    assert items(b'{"id":%s}{"execute": "quit"}')[-1] == {"execute": "quit"}


def test_a_byte_that_no_text_has_ends_a_request_that_was_never_finished() -> None:
    assert items(b'{"execute": "query', b'\xff{"a": 1}') == [
        "!JSON parse error, stray '\"query\ufffd'",
        {"a": 1},
    ]


def test_deep_nesting_is_a_fault_and_bounded() -> None:
    said = items(b"[" * 100_000)
    assert said[0] == "!JSON nesting depth limit exceeded"
    assert all(item == said[0] for item in said)


def test_a_value_with_too_many_tokens_is_a_fault() -> None:
    assert items(b"[" + b"1," * TOKENS_MAX)[0] == "!JSON token count limit exceeded"


def test_a_string_that_never_ends_is_a_fault_and_not_kept() -> None:
    stream = JsonStream()
    piece = b"x" * 65536
    said = [*stream.feed(b'"')]
    for _ in range(VALUE_MAX // len(piece) + 2):
        said += stream.feed(piece)
    assert said[0] == (None, "JSON token size limit exceeded")
    assert [*stream.feed(b'\n{"a": 1}')][-1] == ({"a": 1}, None)


def test_a_number_that_never_ends_is_a_fault() -> None:
    assert items(*[b"1" * 100] * 20)[0] == "!JSON token size limit exceeded"
