"""Identifier and headers, rows H1 to H20."""

import pytest

from tests.support.small_vhdx import LOG_GUID, MIB, Small, header, load, log_entry
from vblk.errors import CorruptImage, ImageError, NeedsReplay, Reason, UnsupportedFeature, WrongFormat
from vblk.formats.vhdx.header import choose_header, parse_header, parse_identifier

BROKEN = header(9)[:-1] + b"x"


def test_the_creator_is_read_up_to_its_end() -> None:
    assert parse_identifier(b"vhdxfile" + "QEMU\0junk".encode("utf-16-le")) == "QEMU"
    assert parse_identifier(b"vhdxfile" + b"\x00\xd8" * 256) == "�" * 256


@pytest.mark.parametrize("data", [b"", b"vhdxfil", b"conectix"])
def test_h1_h2_no_signature_is_another_format(data: bytes) -> None:
    with pytest.raises(WrongFormat):
        parse_identifier(data)


@pytest.mark.parametrize("length", [8, 300 << 10, MIB - 1, MIB])
def test_h2_a_file_cut_short_is_truncated(length: int) -> None:
    with pytest.raises(CorruptImage) as caught:
        load(Small(length=length).build())
    assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize(
    ("copies", "sequence", "codes"),
    [
        pytest.param((header(1), header(2)), 2, [], id="H20-second"),
        pytest.param((header(3, log_guid=LOG_GUID), header(2)), 3, [], id="H20-first"),
        pytest.param((header(1)[:-1] + b"x", header(2)), 2, ["H3"], id="H3"),
        pytest.param((header(1), BROKEN), 1, ["H4"], id="H4"),
        pytest.param((bytes(4096), header(1)), 1, ["H3"], id="H3-no-signature"),
        pytest.param((header(1), header(1)), 1, ["H6"], id="H6"),
        pytest.param((header(1), header(2, version=2)), 2, [], id="H8-chosen"),
    ],
)
def test_the_greater_valid_number_is_current(
    copies: tuple[bytes, bytes], sequence: int, codes: list[str]
) -> None:
    headers = choose_header(copies)
    assert headers.current.sequence_number == sequence
    assert [finding.code for finding in headers.findings] == codes


@pytest.mark.parametrize(
    ("copies", "reason"),
    [
        pytest.param((BROKEN, BROKEN), Reason.BAD_CHECKSUM, id="H5"),
        pytest.param((header(1), header(1, data_write=b"x" * 16)), Reason.DUPLICATE, id="H7"),
    ],
)
def test_without_a_current_header_there_is_no_image(copies: tuple[bytes, bytes], reason: Reason) -> None:
    with pytest.raises(CorruptImage) as caught:
        choose_header(copies)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("current", "error", "reason"),
    [
        pytest.param(header(2, version=2), UnsupportedFeature, Reason.UNSUPPORTED_VERSION, id="H8"),
        pytest.param(
            header(2, log_version=1, log_guid=LOG_GUID),
            UnsupportedFeature,
            Reason.UNSUPPORTED_VERSION,
            id="H10",
        ),
        pytest.param(header(2, log_offset=MIB + 512), CorruptImage, Reason.BAD_VALUE, id="H11"),
        pytest.param(header(2, log_length=4096), CorruptImage, Reason.BAD_VALUE, id="H11-length"),
        pytest.param(header(2, log_length=0, log_guid=LOG_GUID), CorruptImage, Reason.BAD_LOG, id="H13"),
        pytest.param(header(2, log_offset=0), CorruptImage, Reason.OVERLAP, id="H14-headers"),
        pytest.param(header(2, log_offset=2 * MIB), CorruptImage, Reason.OVERLAP, id="H14-metadata"),
        pytest.param(header(2, log_offset=3 * MIB), CorruptImage, Reason.OVERLAP, id="H14-bat"),
        pytest.param(
            header(2, log_offset=1 << 40, log_guid=LOG_GUID), CorruptImage, Reason.TRUNCATED, id="H16"
        ),
    ],
)
def test_a_current_header_that_cannot_be_is_refused(
    current: bytes, error: type[ImageError], reason: Reason
) -> None:
    with pytest.raises(error) as caught:
        load(Small(headers=(header(1), current)).build())
    assert caught.value.reason is reason
    assert caught.value.filename == "small.vhdx"
    assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("current", "code", "writable"),
    [
        pytest.param(header(2, log_version=1), "H9", True, id="H9"),
        pytest.param(header(2, log_length=0), "H12", False, id="H12"),
        pytest.param(header(2, log_offset=1 << 40), "H15", False, id="H15"),
        pytest.param(header((1 << 64) - 1), "H18", False, id="H18"),
    ],
)
def test_an_odd_header_opens_with_a_finding(current: bytes, code: str, writable: bool) -> None:
    image = load(Small(headers=(header(1), current)).build())
    assert [finding.code for finding in image.findings] == [code]
    assert bool(image.read_only_reasons) is not writable


def test_h17_a_large_log_of_garbage_is_searched_once() -> None:
    length = 64 * MIB
    garbage = log_entry(1, [], tail=0)[:64].ljust(4096, b"\xff") * 256
    file = Small(
        headers=(header(1), header(2, log_length=length, log_offset=8 * MIB, log_guid=LOG_GUID)),
        length=8 * MIB + length,
        pieces={8 * MIB: garbage},
    ).build()
    image = load(file)
    assert [finding.code for finding in image.findings] == ["L2"]
    assert sum(count for _, count in file.reads) <= length + 2 * MIB


def test_h19_reserved_bytes_of_the_header_are_ignored() -> None:
    data = header(2)
    assert parse_header(data, 0x10000) is not None
    image = load(Small(headers=(header(1), header(2))).build())
    assert image.findings == []


def test_h20_an_older_dirty_copy_does_not_count() -> None:
    assert load(Small(headers=(header(1, log_guid=LOG_GUID), header(2))).build()).dirty_log is None
    with pytest.raises(NeedsReplay):
        load(Small(headers=(header(3, log_guid=LOG_GUID), header(2))).build(), strict=True)


def test_a_header_survives_no_flipped_byte() -> None:
    data = header(5)
    for at in range(0, 4096, 7):
        flipped = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        assert parse_header(flipped, 0) is None
    for length in range(0, 4096, 97):
        assert parse_header(data[:length], 0) is None
