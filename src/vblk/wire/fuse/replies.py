"""Replies to the kernel, as the bytes that are written to its device.

Owns: the records named "out". A reply is a header and a record, written at once.

Source: linux/fuse.h.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from vblk.wire.fuse.numbers import MAJOR, MINOR, InitFlag
from vblk.wire.fuse.requests import Init

HEADER: Final = struct.Struct("=IiQ")
_INIT: Final = struct.Struct("=IIIIHHIIHHI28x")
_ATTRIBUTES: Final = struct.Struct("=QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("=QQQQII")
_ATTRIBUTES_HEAD: Final = struct.Struct("=QII")
_OPEN: Final = struct.Struct("=QII")
_WRITE: Final = struct.Struct("=II")
_STATFS: Final = struct.Struct("=QQQQQIIII24x")
_DIRENT: Final = struct.Struct("=QQII")
_LSEEK: Final = struct.Struct("=Q")
_FLAGS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
)
_NANO: Final = 10**9
_PAGE: Final = 4096
_SECTOR: Final = 512


class Attributes(NamedTuple):
    """What stat(2) says: `size` in bytes, `blocks` in sectors of 512, times in nanoseconds."""

    node: int
    mode: int
    size: int = 0
    blocks: int = 0
    links: int = 1
    uid: int = 0
    gid: int = 0
    atime: int = 0
    mtime: int = 0


class Entry(NamedTuple):
    """An entry of a folder; `kind` are the bits of its mode that tell files from folders."""

    name: bytes
    node: int
    kind: int


def header(unique: int, length: int, error: int = 0) -> bytes:
    """Return the header of a reply whose record has `length` bytes; `error` is an errno, 0 for none."""
    return HEADER.pack(HEADER.size + length, -error, unique)


def reply(unique: int, record: bytes = b"") -> bytes:
    """Return a whole reply without an error."""
    return header(unique, len(record)) + record


def init_record(asked: Init, *, payload_max: int, background: int) -> bytes:
    """Return our side of the agreement: reads and writes of up to `payload_max` bytes, so many at a time.

    To a kernel of another major version only ours is told; it asks again, or gives up.
    """
    if asked.major != MAJOR:
        return struct.pack("=II", MAJOR, MINOR)
    return _INIT.pack(
        MAJOR,
        MINOR,
        min(asked.max_readahead, payload_max),
        asked.flags & _FLAGS,
        background,
        background * 3 // 4,
        payload_max,
        1,
        payload_max // _PAGE,
        0,
        0,
    )


def _attributes(about: Attributes) -> bytes:
    atime, atime_ns = divmod(about.atime, _NANO)
    mtime, mtime_ns = divmod(about.mtime, _NANO)
    return _ATTRIBUTES.pack(
        about.node, about.size, about.blocks, atime, mtime, mtime, atime_ns, mtime_ns, mtime_ns,
        about.mode, about.links, about.uid, about.gid, 0, _PAGE, 0,
    )  # fmt: skip


def attributes_record(about: Attributes) -> bytes:
    """Return attributes that are not to be kept: the next who asks is told anew."""
    return _ATTRIBUTES_HEAD.pack(0, 0, 0) + _attributes(about)


def entry_record(about: Attributes) -> bytes:
    """Return what a name leads to; the name is kept, its attributes are not."""
    return _ENTRY.pack(about.node, 0, 3600, 0, 0, 0) + _attributes(about)


def open_record(flags: int) -> bytes:
    """Return what is said of a file that was opened."""
    return _OPEN.pack(0, flags, 0)


def write_record(count: int) -> bytes:
    """Return how many bytes were written."""
    return _WRITE.pack(count, 0)


def seek_record(offset: int) -> bytes:
    """Return where something was found."""
    return _LSEEK.pack(offset)


def statfs_record(size: int, files: int) -> bytes:
    """Return a file system that is full: `size` bytes in `files` files."""
    return _STATFS.pack((size + _SECTOR - 1) // _SECTOR, 0, 0, files, 0, _SECTOR, 255, _SECTOR, 0)


def entries_record(entries: Sequence[Entry], start: int, room: int) -> bytes:
    """Return entries of a folder from number `start` on, as many as `room` bytes hold."""
    record = bytearray()
    for number, entry in enumerate(entries[start:], start + 1):
        one = _DIRENT.pack(entry.node, number, len(entry.name), entry.kind >> 12) + entry.name
        one += bytes(-len(one) % 8)
        if len(record) + len(one) > room:
            break
        record += one
    return bytes(record)
