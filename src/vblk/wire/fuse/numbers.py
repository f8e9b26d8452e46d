"""The numbers of the FUSE protocol.

Owns: kinds of request, flags, and the version that is spoken.

Source: linux/fuse.h.
"""

import enum
from typing import Final

MAJOR: Final = 7
MINOR: Final = 31
"""The version that is spoken: Linux has it since 5.4, and later ones speak it, too."""

ROOT: Final = 1
"""The number of the file or folder that is mounted."""

READ_BUFFER_MIN: Final = 8192
"""The smallest buffer, in bytes, that the kernel hands a request to."""


class Opcode(enum.IntEnum):
    """The kinds of request."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    LSEEK = 46
    TMPFILE = 51


MAKING: Final = frozenset(
    (
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.LINK,
        Opcode.CREATE,
        Opcode.RENAME2,
        Opcode.TMPFILE,
    )
)
"""What changes which files there are."""


class InitFlag(enum.IntFlag):
    """What both sides can do."""

    NONE = 0
    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22


class SetFlag(enum.IntFlag):
    """Which attributes a request sets."""

    NONE = 0
    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


class OpenFlag(enum.IntFlag):
    """What the kernel may do with an open file."""

    NONE = 0
    KEEP_CACHE = 1 << 1


class FallocateFlag(enum.IntFlag):
    """What fallocate(2) is asked for."""

    NONE = 0
    KEEP_SIZE = 1
    PUNCH_HOLE = 2
    ZERO_RANGE = 16
