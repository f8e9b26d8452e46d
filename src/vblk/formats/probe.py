"""Probing: guessing a format from the first bytes of a file.

Owns: the signatures. It must not believe them: bytes that a guest wrote may look
like any format, so callers say what was probed, and never write through a guess.
"""

from collections.abc import Callable
from typing import NamedTuple


class Probe(NamedTuple):
    """The best guess: QEMU's name of the format, and how sure it is, 1 to 100."""

    format: str
    confidence: int


PROBE_LENGTH = 2048
"""How many bytes from the start of a file `probe` wants."""


def _starts_with(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


def _is_qcow(version: tuple[int, ...]) -> Callable[[bytes], bool]:
    def test(data: bytes) -> bool:
        return data.startswith(b"QFI\xfb") and int.from_bytes(data[4:8], "big") in version

    return test


def _is_vmdk_descriptor(data: bytes) -> bool:
    return any(
        line.strip().lower().startswith((b"# disk descriptorfile", b"version="))
        for line in data[:512].splitlines()[:1]
    )


def _has_at(offset: int, signature: bytes) -> Callable[[bytes], bool]:
    return lambda data: data[offset : offset + len(signature)] == signature


_SIGNATURES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("vhdx", _starts_with(b"vhdxfile")),
    ("qcow2", _is_qcow((2, 3))),
    ("qcow", _is_qcow((1,))),
    ("qed", _starts_with(b"QED\0")),
    ("vmdk", _starts_with(b"KDMV", b"COWD")),
    ("vmdk", _is_vmdk_descriptor),
    ("vdi", _has_at(0x40, b"\x7f\x10\xda\xbe")),
    ("vpc", _starts_with(b"conectix")),
    ("parallels", _starts_with(b"WithoutFreeSpace", b"WithouFreSpacExt")),
    ("luks", _starts_with(b"LUKS\xba\xbe")),
    ("bochs", _starts_with(b"Bochs Virtual HD Image")),
    ("cloop", _starts_with(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop")),
)


def probe(first_bytes: bytes, file_size: int) -> Probe:
    """Guess the format of a file.

    Args:
        first_bytes: The first `PROBE_LENGTH` bytes of the file, fewer if it is shorter.
        file_size: Its length in bytes.

    Returns: the format whose signature is there, else raw with confidence 1.
    """
    data = first_bytes[: min(PROBE_LENGTH, file_size)]
    for name, matches in _SIGNATURES:
        if matches(data):
            return Probe(name, 100)
    return Probe("raw", 1)
