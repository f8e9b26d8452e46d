"""System calls for which Python has no name.

Owns: `fallocate` with modes, and the requests of block devices and file
systems. All of them block and raise OSError: callers run them on a worker.
Source: fallocate(2), Linux `linux/fs.h`.
"""

import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

_BLKROGET = 0x125E
_BLKSSZGET = 0x1268
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F

_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000
_FS_COMPR_FL = 0x00000004
_FS_ENCRYPT_FL = 0x00000800
_BTRFS_COMPRESSION = "btrfs.compression"
_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
_FS_XFLAG_EXTSIZE = 0x00000800
_FSXATTR = struct.Struct("=IIIII8x")
"""xflags, extsize, nextents, projid, cowextsize."""


@cache
def _fallocate_call() -> Callable[[int, int, int, int], int] | None:
    # Loading ctypes takes longer than opening an image: only who punches holes pays.
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    call.restype = ctypes.c_int

    def fallocate_64(fd: int, mode: int, offset: int, length: int) -> int:
        result: int = call(fd, mode, offset, length)
        return 0 if result == 0 else ctypes.get_errno()

    return fallocate_64


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, zero or punch out `length` bytes at `offset`, as the mode says.

    `mode` is 0 or a sum of `KEEP_SIZE`, `PUNCH_HOLE` and `ZERO_RANGE`.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot do it.
    """
    call = _fallocate_call()
    if call is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    while number := call(fd, mode, offset, length):
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def open_again(fd: int, filename: str, flags: int) -> int:
    """Open the file behind `fd` once more, with `flags` as in open(2), and return a new descriptor.

    Through /proc this finds the very same file even if its name is another's by
    now. Without /proc the name must still lead to it.

    Raises:
        OSError: ESTALE where the name leads elsewhere, or what open(2) says.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
    except FileNotFoundError:
        again = os.open(filename, flags | os.O_CLOEXEC)
    if os.path.samestat(os.fstat(fd), os.fstat(again)):
        return again
    os.close(again)
    raise OSError(errno.ESTALE, f"'{filename}' is another file by now")


def device_discard(fd: int, offset: int, length: int) -> None:
    """Discard a range of a block device; whole sectors."""
    _device_range(fd, _BLKDISCARD, offset, length)


def device_zero_out(fd: int, offset: int, length: int) -> None:
    """Make a range of a block device read as zeros; whole sectors."""
    _device_range(fd, _BLKZEROOUT, offset, length)


def _device_range(fd: int, request: int, offset: int, length: int) -> None:
    import fcntl

    fcntl.ioctl(fd, request, struct.pack("=QQ", offset, length))


def device_sector_size(fd: int) -> int:
    """Return the logical sector size of a block device in bytes."""
    return _device_number(fd, _BLKSSZGET)


def device_is_read_only(fd: int) -> bool:
    """Tell whether a block device refuses writes."""
    return _device_number(fd, _BLKROGET) != 0


def _device_number(fd: int, request: int) -> int:
    import fcntl

    number: int = struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0]
    return number


def sync_folder(path: str) -> None:
    """Make durable which names a folder has.

    Raises:
        OSError: The system refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_no_copy_on_write(fd: int) -> None:
    """Ask the file system (btrfs) to overwrite an empty file's blocks in place."""
    import fcntl

    (flags,) = struct.unpack("=q", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=q", flags | _FS_NOCOW_FL))


def is_compressed_or_encrypted(fd: int) -> tuple[bool, bool]:
    """Tell whether the file system compresses a file, and whether it encrypts it; no if it does not say."""
    import fcntl

    flags = 0
    with suppress(OSError):
        (flags,) = struct.unpack("=q", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    compressed = bool(flags & _FS_COMPR_FL)
    with suppress(OSError):
        compressed = compressed or os.getxattr(fd, _BTRFS_COMPRESSION) not in (b"", b"none", b"no")
    return compressed, bool(flags & _FS_ENCRYPT_FL)


def set_extent_size_hint(fd: int, length: int) -> None:
    """Ask the file system (XFS) to allocate an empty file in pieces of `length` bytes."""
    import fcntl

    blank = bytes(_FSXATTR.size)
    flags, _, extents, project, cow = _FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, blank))
    attributes = _FSXATTR.pack(flags | _FS_XFLAG_EXTSIZE, length, extents, project, cow)
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, attributes)


_NAME_MAX = 180
"""So much of a name is kept, in characters: file systems bound the whole."""


def hidden_beside(path: str, what: str) -> str:
    """Return the name of a hidden file of ours beside the one at `path`; `what` says what it is."""
    folder, base = os.path.split(path)
    return os.path.join(folder, f".{base[:_NAME_MAX]}.vblk-{what}")
