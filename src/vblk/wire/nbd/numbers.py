"""The numbers of the NBD protocol.

Owns: magic numbers, flags, kinds of option, request and reply, and the limits
that this implementation puts on what a peer may say.

Source: proto.md, "Values".
"""

import enum
import errno
from typing import Final

INIT_MAGIC: Final = 0x4E42444D41474943
OLDSTYLE_MAGIC: Final = 0x0000420281861253
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

STRING_MAX: Final = 4096
"""The longest string of the protocol, in bytes."""

ALLOCATION_CONTEXT: Final = "base:allocation"


class HandshakeFlag(enum.IntFlag):
    """What the server says first, and the client's answer in the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class ExportFlag(enum.IntFlag):
    """What an export can do: the transmission flags."""

    NONE = 0
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STAT_PAYLOAD = 1 << 12


class Option(enum.IntEnum):
    """What a client asks for before it chooses an export."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(enum.IntEnum):
    """How a server answers an option. Every other value with bit 31 set is an error too."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9


OPTION_ERROR: Final = 1 << 31


class Info(enum.IntEnum):
    """The kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(enum.IntEnum):
    """The requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """What is special about a request."""

    NONE = 0
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class ReplyType(enum.IntEnum):
    """The kinds of chunk. Every other value with bit 15 set is an error too."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


REPLY_ERROR: Final = 1 << 15
REPLY_DONE: Final = 1


class StatusFlag(enum.IntFlag):
    """What `base:allocation` says about an extent."""

    NONE = 0
    HOLE = 1
    ZERO = 2


class ErrorCode(enum.IntEnum):
    """The errors of the protocol."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


ESHUTDOWN: Final = ErrorCode.ESHUTDOWN

_ERRORS: Final[dict[int, int]] = {
    ErrorCode.EPERM: errno.EPERM,
    ErrorCode.EIO: errno.EIO,
    ErrorCode.ENOMEM: errno.ENOMEM,
    ErrorCode.EINVAL: errno.EINVAL,
    ErrorCode.ENOSPC: errno.ENOSPC,
    ErrorCode.EOVERFLOW: errno.EOVERFLOW,
    ErrorCode.ENOTSUP: errno.ENOTSUP,
    ErrorCode.ESHUTDOWN: errno.ESHUTDOWN,
}
_CODES: Final[dict[int, ErrorCode]] = {
    **{number: ErrorCode(code) for code, number in _ERRORS.items()},
    errno.EACCES: ErrorCode.EINVAL,  # as QEMU: a range that is not kept of a snapshot cannot be asked for
    errno.EROFS: ErrorCode.EPERM,
    errno.EDQUOT: ErrorCode.ENOSPC,
    errno.EFBIG: ErrorCode.ENOSPC,
}


def error_number(code: int) -> int:
    """Return the system's number of an error of the protocol; an unknown one is EINVAL."""
    return _ERRORS.get(code, errno.EINVAL)


def error_code(number: int) -> ErrorCode:
    """Return the error of the protocol that says what a number of the system says; EIO for others.

    Only what is wrong with a request itself is EINVAL, and whoever finds that says so.
    """
    return _CODES.get(number, ErrorCode.EIO)


def shown(data: bytes) -> str:
    """Return a peer's text as one line that a terminal can be given."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
