"""Requests of the kernel, read from the bytes of its device.

Owns: which record follows which header, and what of it is believed. Lengths are
checked before anything else is; numbers are taken as they are.

Source: linux/fuse.h, its header of requests and the records named "in".
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from vblk.errors import PeerError
from vblk.wire.fuse.numbers import Opcode, SetFlag

HEADER: Final = struct.Struct("=IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, length of extensions, padding."""

NAME_MAX: Final = 255

_INIT: Final = struct.Struct("=IIII")
_SETATTR: Final = struct.Struct("=IIQQQQQQIIIIIIII")
_OPEN: Final = struct.Struct("=II")
_READ: Final = struct.Struct("=QQIIQII")
_WRITE: Final = struct.Struct("=QQIIQII")
_HANDLE: Final = struct.Struct("=QII")
_INTERRUPT: Final = struct.Struct("=Q")
_FALLOCATE: Final = struct.Struct("=QQQII")
_LSEEK: Final = struct.Struct("=QQII")


class Init(NamedTuple):
    """The kernel's side of the agreement."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Name(NamedTuple):
    """A name in a folder."""

    name: bytes


class SetAttributes(NamedTuple):
    """Attributes to be set: those that `which` names; times are in nanoseconds."""

    which: SetFlag
    size: int
    atime: int
    mtime: int
    mode: int
    uid: int
    gid: int


class Open(NamedTuple):
    """The flags of open(2)."""

    flags: int


class Read(NamedTuple):
    """A range to be read, in bytes; of a folder `offset` is a number of entries."""

    offset: int
    size: int


class Write(NamedTuple):
    """Bytes to be written. `payload` is part of the buffer that was parsed."""

    offset: int
    payload: memoryview


class Interrupt(NamedTuple):
    """The number of a request whose answer nobody waits for any more."""

    unique: int


class Fallocate(NamedTuple):
    """A range whose space is to change."""

    offset: int
    length: int
    mode: int


class Seek(NamedTuple):
    """Where to look from, and for what: `os.SEEK_DATA` or `os.SEEK_HOLE`."""

    offset: int
    whence: int


Body = Init | Name | SetAttributes | Open | Read | Write | Interrupt | Fallocate | Seek | None


class Request(NamedTuple):
    """One request. `unique` is its number, `node` the file that it is about.

    `opcode` is a number that `Opcode` need not have; `body` is None where nothing
    of it matters here.
    """

    opcode: int
    unique: int
    node: int
    body: Body


def parse_request(data: memoryview) -> Request:
    """Read what one read(2) of the device returned.

    Raises:
        PeerError: It is no request, or its record is too short.
    """
    if len(data) < HEADER.size:
        raise PeerError(f"a request of the kernel has {len(data)} bytes")
    length, opcode, unique, node, _, _, _, _, _ = HEADER.unpack_from(data)
    if length != len(data):
        raise PeerError(f"a request of the kernel says that it has {length} bytes, and has {len(data)}")
    parse = _BODIES.get(opcode)
    try:
        return Request(opcode, unique, node, None if parse is None else parse(data[HEADER.size :]))
    except struct.error:
        raise PeerError(f"a request {opcode} of the kernel has {length} bytes") from None


def _init(data: memoryview) -> Init:
    return Init(*_INIT.unpack_from(data))


def _name(data: memoryview) -> Name:
    name = bytes(data[: NAME_MAX + 1]).split(b"\0", 1)
    if len(name) == 1 and len(data) <= NAME_MAX:
        raise PeerError("a name of the kernel has no end")
    return Name(name[0])


def _set_attributes(data: memoryview) -> SetAttributes:
    fields = _SETATTR.unpack_from(data)
    which, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    return SetAttributes(
        SetFlag(which), size, atime * 10**9 + atime_ns, mtime * 10**9 + mtime_ns, mode, uid, gid
    )


def _open(data: memoryview) -> Open:
    return Open(_OPEN.unpack_from(data)[0])


def _read(data: memoryview) -> Read:
    _, offset, size, _, _, _, _ = _READ.unpack_from(data)
    return Read(offset, size)


def _write(data: memoryview) -> Write:
    _, offset, size, _, _, _, _ = _WRITE.unpack_from(data)
    payload = data[_WRITE.size :]
    if len(payload) != size:
        raise PeerError(f"a write of the kernel says that it has {size} bytes, and has {len(payload)}")
    return Write(offset, payload)


def _interrupt(data: memoryview) -> Interrupt:
    return Interrupt(_INTERRUPT.unpack_from(data)[0])


def _fallocate(data: memoryview) -> Fallocate:
    _, offset, length, mode, _ = _FALLOCATE.unpack_from(data)
    return Fallocate(offset, length, mode)


def _seek(data: memoryview) -> Seek:
    _, offset, whence, _ = _LSEEK.unpack_from(data)
    return Seek(offset, whence)


_BODIES: Final[dict[int, Callable[[memoryview], Body]]] = {
    Opcode.INIT: _init,
    Opcode.LOOKUP: _name,
    Opcode.SETATTR: _set_attributes,
    Opcode.OPEN: _open,
    Opcode.OPENDIR: _open,
    Opcode.READ: _read,
    Opcode.READDIR: _read,
    Opcode.WRITE: _write,
    Opcode.INTERRUPT: _interrupt,
    Opcode.FALLOCATE: _fallocate,
    Opcode.LSEEK: _seek,
}
