"""Probing: each signature, and nothing else."""

import pytest

from vblk.formats.probe import probe


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"vhdxfile", "vhdx"),
        (b"QFI\xfb\0\0\0\2", "qcow2"),
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"QFI\xfb\0\0\0\1", "qcow"),
        (b"QFI\xfb\0\0\0\x09", "raw"),
        (b"QED\0", "qed"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"conectix", "vpc"),
        (b"WithoutFreeSpace", "parallels"),
        (b"LUKS\xba\xbe", "luks"),
        (b"", "raw"),
        (bytes(2048), "raw"),
        (b"vhdxfil", "raw"),
    ],
)
def test_signatures(data: bytes, expected: str) -> None:
    assert probe(data, len(data)).format == expected


def test_a_guess_without_a_signature_is_worth_least() -> None:
    assert probe(b"\0", 1).confidence == 1
    assert probe(b"vhdxfile", 8).confidence == 100


def test_bytes_beyond_the_file_do_not_count() -> None:
    assert probe(b"vhdxfile", 4).format == "raw"
