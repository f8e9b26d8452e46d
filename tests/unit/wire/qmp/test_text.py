"""JSON is written as QEMU writes it."""

import pytest

from vblk.wire.qmp import encode_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ({"return": {}, "id": 1}, '{"return": {}, "id": 1}'),
        ({"error": 1, "id": 2}, '{"id": 2, "error": 1}'),
        ({"data": 1, "event": 2, "timestamp": 3}, '{"timestamp": 3, "event": 2, "data": 1}'),
        ({"zzz-unknown": 1, "aaa-unknown": 2}, '{"zzz-unknown": 1, "aaa-unknown": 2}'),
        ([1, 2.5, 0.1, 1e3, None, True, False], "[1, 2.5, 0.10000000000000001, 1000, null, true, false]"),
        ('é/"\\\b\f\n\r\t\x01\x7f\U0001f600', r'"\u00E9/\"\\\b\f\n\r\t\u0001\u007F\uD83D\uDE00"'),
        ("\udcff", r'"\uFFFD"'),
    ],
)
def test_values_are_spelled_as_qemu_spells_them(value: object, text: str) -> None:
    assert encode_json(value) == text


def test_pretty_text_has_a_member_a_line() -> None:
    assert encode_json({"return": [{"name": "a"}], "id": {}}, pretty=True) == (
        '{\n    "return": [\n        {\n            "name": "a"\n        }\n    ],\n    "id": {\n    }\n}'
    )
