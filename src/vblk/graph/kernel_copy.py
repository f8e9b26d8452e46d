"""Copying between two file descriptors inside the kernel, by the cheapest means.

Owns: the ladder reflink, copy_file_range, sendfile, and what this pair of files
was found not to do. It blocks: callers run it on a worker. It knows no nodes.

Facts behind the ladder (Linux): FICLONERANGE wants both offsets and the length
on file-system blocks (the length may end at the end of the source), and both
files on one file system that shares extents. copy_file_range between different
kinds of file system answers EXDEV; sendfile writes at the target's file
position, so that the descriptor is opened anew for it.
"""

import enum
import errno
import os
import struct

from vblk.errors import NoSpace, StorageError
from vblk.graph.sparse_copy import Saw, copy_without_zeros
from vblk.units import MIB, align_down

_FICLONERANGE = 0x4020940D
_NOT_POSSIBLE = frozenset(
    (
        errno.EXDEV,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EINVAL,
        errno.EPERM,
        errno.EBADF,
        errno.ENOTTY,
        errno.ETXTBSY,
    )
)

_REFLINK_MAX = 1024 * MIB


class Means(enum.Enum):
    """How bytes went from one node to another."""

    NONE = "none"
    REFLINK = "reflink"
    COPY_FILE_RANGE = "copy_file_range"
    SENDFILE = "sendfile"
    LOOKED_THROUGH = "looked through for zeros"
    MEMORY = "memory"


class KernelCopier:
    """Copies ranges from one descriptor to another without passing memory.

    Concurrency: `copy` may run on several threads at a time; what the pair
    cannot do is remembered by plain flags that only ever turn off.
    """

    def __init__(self, source: int, target: int, *, piece_max: int) -> None:
        self._source = source
        self._target = target
        self._piece_max = piece_max
        self._block = self._common_block()
        self._can_reflink = self._block is not None
        self._can_copy = hasattr(os, "copy_file_range")
        self._can_send = hasattr(os, "sendfile")

    @property
    def usable(self) -> bool:
        """Whether any means is left."""
        return self._can_reflink or self._can_copy or self._can_send

    def copy(
        self,
        source_offset: int,
        target_offset: int,
        length: int,
        *,
        zero_unit: int = 0,
        saw: Saw = lambda at, data: None,
    ) -> tuple[Means, int]:
        """Copy up to `length` bytes; return the means and how many went.

        With `zero_unit` the target reads as zeros, and what cannot be shared is
        looked through for runs of that many zero bytes, which are left out; `saw`
        is told of all of that, by where it is in the range. (NONE, 0) says: this
        range has to pass memory. The source ends where it ends: a shorter count at
        its end is not an error here.

        Raises:
            NoSpace: The target's file system is full.
            StorageError: Reading or writing failed.
        """
        count = self._reflink(source_offset, target_offset, length) if self._can_reflink else 0
        if count:
            return Means.REFLINK, count
        length = min(length, self._piece_max)
        if zero_unit:
            looked_through = copy_without_zeros(
                self._source, self._target, source_offset, target_offset, length, unit=zero_unit, saw=saw
            )
            return (Means.LOOKED_THROUGH if looked_through else Means.NONE), looked_through
        if self._can_copy:
            copied = self._copy_file_range(source_offset, target_offset, length)
            if copied:
                return Means.COPY_FILE_RANGE, copied
        if self._can_send:
            sent = self._sendfile(source_offset, target_offset, length)
            if sent:
                return Means.SENDFILE, sent
        return Means.NONE, 0

    def _common_block(self) -> int | None:
        source, target = os.fstat(self._source), os.fstat(self._target)
        if source.st_dev != target.st_dev:
            return None
        volume = os.fstatvfs(self._target)
        return volume.f_frsize or volume.f_bsize

    def _reflink(self, source_offset: int, target_offset: int, length: int) -> int:
        assert self._block is not None
        length = min(align_down(length, self._block), _REFLINK_MAX)
        if not length or source_offset % self._block or target_offset % self._block:
            return 0
        import fcntl

        order = struct.pack("=qQQQ", self._source, source_offset, length, target_offset)
        try:
            fcntl.ioctl(self._target, _FICLONERANGE, order)
        except OSError as error:
            if error.errno != errno.EINVAL:  # that is about this range, not about the files
                _raise_unless_impossible(error, "reflink", target_offset, length)
                self._can_reflink = False
            return 0
        return length

    def _copy_file_range(self, source_offset: int, target_offset: int, length: int) -> int:
        try:
            return os.copy_file_range(self._source, self._target, length, source_offset, target_offset)
        except OSError as error:
            _raise_unless_impossible(error, "copy_file_range", target_offset, length)
            self._can_copy = False
            return 0

    def _sendfile(self, source_offset: int, target_offset: int, length: int) -> int:
        import fcntl

        # A write-through descriptor stays one when it is opened anew.
        stable = fcntl.fcntl(self._target, fcntl.F_GETFL) & os.O_SYNC
        try:
            target = os.open(f"/proc/self/fd/{self._target}", os.O_WRONLY | os.O_CLOEXEC | stable)
        except OSError:
            self._can_send = False
            return 0
        try:
            os.lseek(target, target_offset, os.SEEK_SET)
            return os.sendfile(target, self._source, source_offset, length)
        except OSError as error:
            _raise_unless_impossible(error, "sendfile", target_offset, length)
            self._can_send = False
            return 0
        finally:
            os.close(target)


def _raise_unless_impossible(error: OSError, operation: str, offset: int, length: int) -> None:
    number = error.errno or errno.EIO
    if number in _NOT_POSSIBLE:
        return
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise NoSpace("No space left on device", operation=operation, offset=offset, length=length) from error
    raise StorageError(number, operation=operation, offset=offset, length=length) from error
