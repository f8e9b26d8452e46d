"""The few functions of libgfapi that are called.

Owns: their declarations, and finding the library, which happens when the first
volume is connected. Nobody else names a function of it, or knows how `struct stat`
lies in memory.

Source: glfs.h of GlusterFS 10; its functions with completions are those of version 6.
"""

import errno
import functools
import os
import platform
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from vblk.errors import Unsupported

_NAME: Final = "libgfapi.so.0"
_DECLARATIONS: Final = """
typedef struct glfs glfs_t;
typedef struct glfs_fd glfs_fd_t;
typedef void (*glfs_io_cbk)(glfs_fd_t *fd, ssize_t result, void *before, void *after, void *data);
glfs_t *glfs_new(const char *volume);
int glfs_set_volfile_server(glfs_t *fs, const char *transport, const char *host, int port);
int glfs_set_logging(glfs_t *fs, const char *logfile, int level);
int glfs_init(glfs_t *fs);
int glfs_fini(glfs_t *fs);
glfs_fd_t *glfs_open(glfs_t *fs, const char *path, int flags);
glfs_fd_t *glfs_creat(glfs_t *fs, const char *path, int flags, unsigned int mode);
int glfs_close(glfs_fd_t *fd);
int glfs_stat(glfs_t *fs, const char *path, void *status);
int glfs_fstat(glfs_fd_t *fd, void *status);
int64_t glfs_lseek(glfs_fd_t *fd, int64_t offset, int whence);
int glfs_pread_async(glfs_fd_t *fd, void *buffer, size_t count, int64_t offset, int flags,
                     glfs_io_cbk done, void *data);
int glfs_pwrite_async(glfs_fd_t *fd, const void *buffer, int count, int64_t offset, int flags,
                      glfs_io_cbk done, void *data);
int glfs_fdatasync_async(glfs_fd_t *fd, glfs_io_cbk done, void *data);
int glfs_zerofill_async(glfs_fd_t *fd, int64_t offset, int64_t length, glfs_io_cbk done, void *data);
int glfs_discard_async(glfs_fd_t *fd, int64_t offset, size_t length, glfs_io_cbk done, void *data);
int glfs_ftruncate_async(glfs_fd_t *fd, int64_t length, glfs_io_cbk done, void *data);
"""
_STATUS_ROOM: Final = 256
_MODE_AT: Final = {"x86_64": 24}
_SIZE_AT: Final = 48
_BLOCKS_AT: Final = 64


class Library(NamedTuple):
    """libgfapi, and what speaks to it."""

    ffi: Any
    functions: Any

    def failed(self) -> NoReturn:
        """Raise what the last call of this thread failed with.

        Raises:
            OSError: Always.
        """
        number = int(self.ffi.errno) or errno.EIO
        raise OSError(number, os.strerror(number))


class Status(NamedTuple):
    """What is known of a file: its mode, its length, and the bytes that it takes."""

    mode: int
    length: int
    allocated: int


@functools.cache
def library() -> Library:
    """Load libgfapi.

    Raises:
        Unsupported: It is not installed.
    """
    import cffi  # takes a while, and parses the declarations

    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    try:
        return Library(ffi, ffi.dlopen(_NAME))
    except OSError as error:
        raise Unsupported(
            f"gluster:// needs GlusterFS's library {_NAME} (Debian: libgfapi0; Fedora: libgfapi)"
        ) from error


def status_of(ask: Callable[[Any], int]) -> Status:
    """Return what a function that fills a `struct stat` says; it blocks.

    Raises:
        OSError: It says nothing.
    """
    gfapi = library()
    room = gfapi.ffi.new("char[]", _STATUS_ROOM)
    if ask(room):
        gfapi.failed()
    data = bytes(gfapi.ffi.buffer(room))
    (mode,) = struct.unpack_from("=I", data, _MODE_AT.get(platform.machine(), 16))
    (length,) = struct.unpack_from("=q", data, _SIZE_AT)
    (blocks,) = struct.unpack_from("=q", data, _BLOCKS_AT)
    return Status(mode, length, blocks * 512)
