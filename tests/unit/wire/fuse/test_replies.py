"""Replies to the kernel, byte by byte."""

import errno
import struct

from vblk.wire.fuse import replies
from vblk.wire.fuse.replies import Attributes, Entry
from vblk.wire.fuse.requests import Init

FLAGS = 1 << 0 | 1 << 5 | 1 << 15 | 1 << 18 | 1 << 22


def test_a_reply_counts_its_bytes_and_turns_its_error_round() -> None:
    assert replies.reply(9, b"abc") == struct.pack("=IiQ", 19, 0, 9) + b"abc"
    assert replies.header(9, 0, errno.EIO) == struct.pack("=IiQ", 16, -5, 9)


def test_the_agreement_is_on_what_both_can_do_in_the_size_of_the_kernels_record() -> None:
    record = replies.init_record(Init(7, 38, 1 << 30, 0xFFFFFFFF), payload_max=1 << 20, background=64)
    assert len(record) == 64
    fields = struct.unpack_from("=IIIIHHIIHH", record)
    assert fields == (
        7,
        31,
        1 << 20,
        1 << 0 | 1 << 5 | 1 << 15 | 1 << 18 | 1 << 22,
        64,
        48,
        1 << 20,
        1,
        256,
        0,
    )
    few = replies.init_record(Init(7, 31, 4096, 1), payload_max=1 << 20, background=64)
    assert struct.unpack_from("=IIII", few) == (7, 31, 4096, 1)


def test_a_kernel_of_another_major_version_is_told_ours() -> None:
    record = replies.init_record(Init(8, 0, 0, 0), payload_max=1 << 20, background=64)
    assert record == struct.pack("=II", 7, 31)


def test_attributes_are_in_the_kernels_order_and_never_kept() -> None:
    about = Attributes(2, 0o100600, 1025, 3, 1, 10, 20, 5_000_000_001, 6_000_000_002)
    record = replies.attributes_record(about)
    expected = (2, 1025, 3, 5, 6, 6, 1, 2, 2, 0o100600, 1, 10, 20, 0, 4096, 0)
    assert struct.unpack("=QII" + "QQQQQQIIIIIIIIII", record) == (0, 0, 0, *expected)
    entry = replies.entry_record(about)
    assert struct.unpack_from("=QQQQII", entry) == (2, 0, 3600, 0, 0, 0)
    assert entry[40:] == record[16:]


def test_entries_are_padded_numbered_and_as_many_as_there_is_room_for() -> None:
    entries = [Entry(b".", 1, 0o040000), Entry(b"longer name", 2, 0o100000)]
    whole = replies.entries_record(entries, 0, 4096)
    assert whole[:32] == struct.pack("=QQII", 1, 1, 1, 4) + b"." + bytes(7)
    assert whole[32:] == struct.pack("=QQII", 2, 2, 11, 8) + b"longer name" + bytes(5)
    assert replies.entries_record(entries, 0, len(whole) - 1) == whole[:32]
    assert replies.entries_record(entries, 1, 4096) == whole[32:]
    assert replies.entries_record(entries, 2, 4096) == b""


def test_small_records_have_the_sizes_of_the_kernels() -> None:
    assert replies.open_record(2) == struct.pack("=QII", 0, 2, 0)
    assert replies.write_record(7) == struct.pack("=II", 7, 0)
    assert replies.seek_record(7) == struct.pack("=Q", 7)
    assert len(replies.statfs_record(1 << 20, 1)) == 80
    assert struct.unpack_from("=Q", replies.statfs_record(1025, 1)) == (3,)
