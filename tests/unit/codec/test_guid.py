"""GUIDs: bytes, text, and lenient reading."""

import uuid

import pytest

from vblk.codec.guid import ZERO_GUID, Guid

TEXT = "{00112233-4455-6677-8899-aabbccddeeff}"


def test_text_is_lower_case_with_braces() -> None:
    raw = bytes.fromhex("33221100554477668899aabbccddeeff")
    assert str(Guid(raw)) == TEXT
    assert Guid(raw) == uuid.UUID(TEXT).bytes_le


@pytest.mark.parametrize("text", [TEXT, TEXT.upper(), TEXT.strip("{}"), f" {TEXT} "])
def test_every_usual_text_is_read(text: str) -> None:
    assert str(Guid.parse(text)) == TEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:-1],
        TEXT[1:],
        TEXT[:-2] + "g}",
        TEXT.replace("-", ""),
        TEXT + "0",
        TEXT.replace("11", " 1"),
        TEXT.replace("1122", "1 22"),
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Guid.parse(text)


def test_only_sixteen_bytes_are_a_guid() -> None:
    with pytest.raises(ValueError):
        Guid(bytes(15))
    assert bytes(16) == ZERO_GUID
