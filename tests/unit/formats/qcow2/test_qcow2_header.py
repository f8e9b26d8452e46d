"""What a qcow2 header may say: everything else is refused with its place, in QEMU's words."""

import struct
from contextlib import suppress

import pytest

from vblk.errors import CorruptImage, ImageError, OptionError, UnsupportedFeature, WrongFormat
from vblk.formats.qcow2.create import NewQcow2, plan_creation
from vblk.formats.qcow2.header import Extension, Header, encode_header, parse_header

CLUSTER = 65536


def header_bytes(**fields: int) -> bytearray:
    """Return the first cluster of a new image with some fields changed, by their offsets."""
    data = bytearray(plan_creation(NewQcow2(1 << 30)).header.ljust(CLUSTER, b"\0"))
    widths = {"version": (4, ">I"), "name_at": (8, ">Q"), "name_length": (16, ">I"), "bits": (20, ">I")}
    widths |= {"size": (24, ">Q"), "encryption": (32, ">I"), "l1_size": (36, ">I"), "l1_at": (40, ">Q")}
    widths |= {"table_at": (48, ">Q"), "table_clusters": (56, ">I"), "snapshots": (60, ">I")}
    widths |= {"snapshots_at": (64, ">Q"), "incompatible": (72, ">Q"), "order": (96, ">I")}
    widths |= {"length": (100, ">I"), "compression": (104, ">B"), "extension_length": (116, ">I")}
    for name, value in fields.items():
        at, form = widths[name]
        struct.pack_into(form, data, at, value)
    return data


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"version": 4}, UnsupportedFeature, "Unsupported qcow2 version 4"),
        ({"bits": 8}, CorruptImage, "Unsupported cluster size: 2^8"),
        ({"bits": 22}, CorruptImage, "Unsupported cluster size: 2^22"),
        ({"encryption": 1}, UnsupportedFeature, "encrypted"),
        ({"order": 7}, CorruptImage, "Reference count entry width too large; may not exceed 64 bits"),
        ({"length": 0x7FFFFFFF}, CorruptImage, "qcow2 header exceeds cluster size"),
        ({"length": 103}, CorruptImage, "qcow2 header too short"),
        ({"length": 108}, CorruptImage, "no multiple of 8"),
        ({"name_at": CLUSTER + 1}, CorruptImage, "Invalid backing file offset"),
        ({"extension_length": 0x7FFFFFFF}, CorruptImage, "Header extension too large"),
        ({"table_clusters": 0x7FFFFFFF}, CorruptImage, "Reference count table too large"),
        ({"table_clusters": 0}, CorruptImage, "does not contain a reference count table"),
        ({"table_at": 0x1234}, CorruptImage, "Reference count table offset invalid"),
        ({"table_at": 0xFFFFFFFFFFFF0000}, CorruptImage, "Reference count table offset invalid"),
        ({"snapshots": 0xFFFFFFFF}, CorruptImage, "Snapshot table too large"),
        ({"snapshots": 1, "snapshots_at": 0x1234}, CorruptImage, "Snapshot table offset invalid"),
        ({"l1_size": 0xFFFFFFFF}, CorruptImage, "Active L1 table too large"),
        ({"l1_at": 0x1234}, CorruptImage, "Active L1 table offset invalid"),
        ({"l1_at": 0xFFFFFFFFFFFF0000}, CorruptImage, "Active L1 table offset invalid"),
        ({"l1_size": 1}, CorruptImage, "L1 table is too small"),
        ({"size": 1 << 62}, CorruptImage, "Image is too big"),
        ({"size": 1 << 63}, CorruptImage, "Image is too big"),
        ({"name_at": 1000, "name_length": 1024}, CorruptImage, "Backing file name too long"),
        ({"incompatible": 4}, UnsupportedFeature, "external data file"),
        ({"incompatible": 16}, UnsupportedFeature, "extended L2 entries"),
        ({"incompatible": 1 << 17}, UnsupportedFeature, "Unknown incompatible feature: 20000"),
        ({"incompatible": 8}, CorruptImage, "Compression type incompatible feature bit"),
        ({"compression": 1}, CorruptImage, "Compression type incompatible feature bit must be set"),
        ({"compression": 2, "incompatible": 8}, UnsupportedFeature, "unknown compression type: 2"),
    ],
)
def test_a_field_that_cannot_be_is_refused(
    fields: dict[str, int], kind: type[ImageError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        parse_header(bytes(header_bytes(**fields)))
    assert words in caught.value.message
    assert caught.value.offset is not None


def test_a_feature_that_the_image_names_is_refused_by_name() -> None:
    name = struct.pack(">BB46s", 0, 17, b"time travel")
    header = parse_header(bytes(header_bytes()))
    header = header._replace(extensions=(Extension(0x6803F857, name),), incompatible=1 << 17)
    with pytest.raises(UnsupportedFeature, match="time travel"):
        parse_header(encode_header(header).ljust(CLUSTER, b"\0"))


def test_bytes_of_another_format_are_not_taken_for_a_header() -> None:
    for data in (b"", b"QFI", bytes(CLUSTER), b"vhdxfile" + bytes(CLUSTER)):
        with pytest.raises(WrongFormat):
            parse_header(data)


def test_a_header_that_was_cut_is_refused_or_reads_the_same() -> None:
    whole = bytes(header_bytes())
    expected = parse_header(whole)
    for length in range(4, 600):
        try:
            header = parse_header(whole[:length])
        except CorruptImage:
            continue
        assert header._replace(extensions=()) == expected._replace(extensions=())


def test_any_flipped_byte_is_refused_or_read() -> None:
    whole = header_bytes()
    for at in range(512):
        for value in (0, 1, 0x7F, 0xFF):
            changed = bytearray(whole)
            changed[at] = value
            with suppress(ImageError):
                parse_header(bytes(changed))


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_encoded_reads_the_same(version: int) -> None:
    header = Header(
        version,
        12,
        1 << 20,
        1,
        8192,
        4096,
        1,
        header_length=72 if version == 2 else 120,
        unknown=b"" if version == 2 else b"12345678",
        extensions=(Extension(0x1234, b"kept as it is"),),
    ).with_backing("base \N{SNOWMAN}.img", "raw")
    assert parse_header(encode_header(header).ljust(4096, b"\0")) == header


def test_a_backing_name_that_does_not_fit_is_refused() -> None:
    header = parse_header(bytes(header_bytes()))
    with pytest.raises(OptionError, match="no room"):
        encode_header(header.with_backing("x" * 1024, None))
    with pytest.raises(OptionError, match="no room"):
        encode_header(header._replace(cluster_bits=9).with_backing("x" * 100, None))
