"""Typed errors: everything that can go wrong with a block device, and how badly.

Three classes answer the first question of every caller, "what is still good?":
`RequestError` (this request failed, the node is healthy), `ImageError` (the
bytes of the image disagree with its specification), `NodeFailed` (the node is
poisoned). `GraphError` and `OptionError` are about nodes and their naming.
Any other exception that leaves vblk for the sake of input bytes is a defect.
"""

import enum
import errno
import os


class BlockError(Exception):
    """The base of all errors of vblk.

    `message` is a sentence without the file's name; `filename` names the file
    where one is known; `offset` and `length` are in bytes.
    """

    default_errno = errno.EIO

    def __init__(
        self,
        message: str,
        *,
        filename: str | None = None,
        operation: str | None = None,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.filename = filename
        self.operation = operation
        self.offset = offset
        self.length = length

    @property
    def errno(self) -> int:
        """The POSIX error number nearest to this error."""
        return self.default_errno

    def __str__(self) -> str:
        text = self.message
        if self.offset is not None:
            text += f" (offset {self.offset:#x})"
        return f"{self.filename}: {text}" if self.filename is not None else text


class OptionError(BlockError):
    """An image or an option is named in a way that cannot be right."""

    default_errno = errno.EINVAL


class RequestError(BlockError):
    """One request failed; the node is healthy."""


class OutOfRange(RequestError):
    """A request does not lie within the node."""

    default_errno = errno.EINVAL


class Misaligned(RequestError):
    """A request or a size is not a multiple of what the node demands."""

    default_errno = errno.EINVAL


class ReadOnly(RequestError):
    """A node that is open for reading only was asked to change."""

    default_errno = errno.EACCES


class NoSpace(RequestError):
    """The storage is full."""

    default_errno = errno.ENOSPC


class Unsupported(RequestError):
    """The node, the file system or this version of vblk cannot do this."""

    default_errno = errno.ENOTSUP


class StorageError(RequestError):
    """The operating system or the medium refused; `errno` says why."""

    def __init__(
        self,
        error_number: int,
        message: str | None = None,
        *,
        filename: str | None = None,
        operation: str | None = None,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(
            message if message is not None else os.strerror(error_number),
            filename=filename,
            operation=operation,
            offset=offset,
            length=length,
        )
        self._errno = error_number

    @property
    def errno(self) -> int:
        """The error number that the operating system gave."""
        return self._errno


class Reason(enum.Enum):
    """Why an image was refused, for programs to switch on."""

    WRONG_SIGNATURE = "wrong-signature"
    TRUNCATED = "truncated"
    BAD_CHECKSUM = "bad-checksum"
    BAD_VALUE = "bad-value"
    DUPLICATE = "duplicate"
    MISSING_ITEM = "missing-item"
    OVERLAP = "overlap"
    OUT_OF_FILE = "out-of-file"
    LIMIT = "limit"
    UNFINISHED = "unfinished"
    UNKNOWN_REQUIRED = "unknown-required"
    UNSUPPORTED_VERSION = "unsupported-version"
    DIRTY_LOG = "dirty-log"
    BAD_LOG = "bad-log"
    PARENT_MISSING = "parent-missing"
    PARENT_MISMATCH = "parent-mismatch"
    PARENT_LOCATOR = "parent-locator"
    POLICY = "policy"


class ImageError(BlockError):
    """The bytes of an image disagree with its specification.

    `reason` is for programs; `offset` is the file offset of the bytes in
    question, in the file named by `filename`.
    """

    default_errno = errno.EINVAL

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        filename: str | None = None,
        operation: str | None = None,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(message, filename=filename, operation=operation, offset=offset, length=length)
        self.reason = reason


class WrongFormat(ImageError):
    """The image is not of this format at all."""


class CorruptImage(ImageError):
    """The image is of this format and damaged."""


class UnsupportedFeature(ImageError):
    """The image needs something that this version does not know."""

    default_errno = errno.ENOTSUP


class NeedsReplay(ImageError):
    """The image has a log that must be replayed, and the caller forbade it."""


class OpenDenied(ImageError):
    """The open gate refused a file that an image names."""

    default_errno = errno.EPERM


class NodeFailed(BlockError):
    """The node is poisoned: an earlier flush or metadata write failed.

    `__cause__` is the first failure. Only closing is still possible.
    """


class PeerError(BlockError):
    """The other side of a connection broke its protocol; the connection was given up."""

    default_errno = errno.EPROTO


class GraphError(BlockError):
    """A node cannot take this place in the graph."""

    default_errno = errno.EINVAL


class PermissionConflict(GraphError):
    """Two users of a node, in this process or another, exclude each other."""

    default_errno = errno.EAGAIN


class Cycle(GraphError):
    """An image is its own ancestor, or a chain is deeper than the limit."""

    default_errno = errno.ELOOP


class NodeBusy(GraphError):
    """The node is in use and cannot be changed or removed."""

    default_errno = errno.EBUSY


class JobError(BlockError):
    """A job cannot do what it was asked, or not now."""

    default_errno = errno.EINVAL


class CopyDiffers(BlockError):
    """A copy is not what it was made from: `offset` is where the first difference that was met begins."""

    def __init__(self, filename: str, offset: int) -> None:
        super().__init__("the copy differs from its source", filename=filename, offset=offset)
