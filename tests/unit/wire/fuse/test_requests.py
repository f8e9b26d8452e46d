"""The kernel's requests, byte by byte."""

import os
import struct

import pytest

from tests.support.fuse_requests import SAMPLES, request
from vblk.errors import PeerError
from vblk.wire.fuse import parse_request
from vblk.wire.fuse.numbers import SetFlag
from vblk.wire.fuse.requests import Fallocate, Init, Interrupt, Name, Open, Read, Seek, SetAttributes, Write


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("init", Init(7, 38, 131072, 0xFFFFFFFF)),
        ("lookup", Name(b"disk")),
        ("getattr", None),
        ("setattr", SetAttributes(SetFlag(0x3F), 4096, 10**9 + 10, 2 * 10**9 + 20, 0o100640, 5, 6)),
        ("open", Open(os.O_RDWR)),
        ("read", Read(4096, 512)),
        ("interrupt", Interrupt(5)),
        ("fallocate", Fallocate(512, 1024, 3)),
        ("lseek", Seek(512, os.SEEK_HOLE)),
        ("batch-forget", None),
        ("unknown", None),
    ],
)
def test_a_request_says_what_it_is_about(name: str, body: object) -> None:
    found = parse_request(memoryview(SAMPLES[name]))
    assert (found.unique, found.node, found.body) == (7, 1, body)


def test_what_is_written_is_a_part_of_the_buffer() -> None:
    buffer = bytearray(SAMPLES["write"])
    body = parse_request(memoryview(buffer)).body
    buffer[-5:] = b"other"
    assert isinstance(body, Write)
    assert (body.offset, bytes(body.payload)) == (512, b"other")


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if len(sample) > 48])
def test_a_record_that_is_cut_short_is_refused(name: str) -> None:
    if name in ("getattr", "batch-forget", "unknown"):
        return
    sample = SAMPLES[name]
    cut = bytearray(sample[:44])
    cut[:4] = struct.pack("=I", len(cut))
    with pytest.raises(PeerError, match="bytes"):
        parse_request(memoryview(cut))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 39,
        SAMPLES["read"] + b"x",
        request(16, struct.pack("=QQIIQII", 0, 0, 6, 0, 0, 0, 0) + b"bytes"),
        request(1, b"disk"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        parse_request(memoryview(data))


def test_a_name_longer_than_any_is_cut() -> None:
    body = parse_request(memoryview(request(1, b"x" * 5000 + b"\0"))).body
    assert body == Name(b"x" * 256)
