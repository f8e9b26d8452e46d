"""What a file or a device can do with its space, beyond reading and writing.

Owns: zeroing, discarding, holes and allocation, and the memory of what this
storage was found not to do. Everything here blocks and raises OSError: it runs
on workers. It knows descriptors, not nodes.
"""

import errno
import os
import stat
from abc import ABC, abstractmethod
from functools import partial

from vblk.aio.file_calls import (
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    device_discard,
    device_sector_size,
    device_zero_out,
    fallocate,
)
from vblk.protocols.data_runs import Runs, data_runs
from vblk.units import MIB

_UNSUPPORTED = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENODEV, errno.EPERM}
)


class Space(ABC):
    """The space of one open file or device.

    Concurrency: several workers may be inside; what cannot be done is
    remembered by flags that only ever turn off.
    """

    zero_step_max = 1 << 62
    """The most bytes to zero or discard in one call, so that it ends in seconds."""

    sector_size = 1
    """The unit, in bytes, that zeroing and discarding need."""

    can_flush = True
    """False for what has no stable storage."""

    writes_fill_memory = False
    """Whether a write of whole pages ends in the page cache and waits for no device."""

    def __init__(self, fd: int) -> None:
        """Work on `fd`, which stays the caller's."""
        self._fd = fd

    def size(self) -> int:
        """Return the length in bytes as it is now."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    @abstractmethod
    def try_zero(self, offset: int, length: int, *, unmap: bool, cheap_only: bool) -> bool:
        """Make a range read as zeros without writing them, or return False.

        The range may reach beyond the end of a file, which grows. With `unmap`
        its space may be given back, without it it is kept; `cheap_only`
        excludes what may turn into slow writing beneath us.
        """

    @abstractmethod
    def try_discard(self, offset: int, length: int) -> bool:
        """Give the space of a range back, or return False."""

    @abstractmethod
    def segments(self, offset: int, end: int) -> Runs:
        """Return (is data, end) of runs from `offset` on, gapless, up to `end` or fewer."""

    @abstractmethod
    def allocated(self) -> int:
        """Return the bytes taken on the storage."""


class FileSpace(Space):
    """The space of a regular file."""

    writes_fill_memory = True

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._can_punch = True
        self._can_zero_range = True
        self._can_seek_data = hasattr(os, "SEEK_DATA")

    def try_zero(self, offset: int, length: int, *, unmap: bool, cheap_only: bool) -> bool:
        """Punch a hole or zero the range; see `Space.try_zero`."""
        if unmap and self._try_punch(offset, length):
            if offset + length > self.size():
                os.ftruncate(self._fd, offset + length)
            return True
        if self._can_zero_range:
            try:
                fallocate(self._fd, ZERO_RANGE, offset, length)
                return True
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._can_zero_range = False
        if self._try_punch(offset, length):
            try:
                fallocate(self._fd, 0, offset, length)
                return True
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        return False

    def try_discard(self, offset: int, length: int) -> bool:
        """Punch a hole; see `Space.try_discard`."""
        return self._try_punch(offset, length)

    def _try_punch(self, offset: int, length: int) -> bool:
        if not self._can_punch:
            return False
        try:
            fallocate(self._fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._can_punch = False
            return False
        return True

    def segments(self, offset: int, end: int) -> Runs:
        """Ask for holes with SEEK_DATA and SEEK_HOLE; see `Space.segments`."""
        if self._can_seek_data:
            try:
                return data_runs(partial(os.lseek, self._fd), offset, end)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._can_seek_data = False
        return [(True, end)]

    def allocated(self) -> int:
        """Count the file's blocks; see `Space.allocated`."""
        return os.fstat(self._fd).st_blocks * 512


class DeviceSpace(Space):
    """The space of a block device, or of a character device that can be read."""

    zero_step_max = 128 * MIB
    """Devices that must write their zeros take long: a request stays far below their time limits."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._can_punch = True
        self._can_zero_out = True
        self._can_discard = True
        self.can_flush = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.sector_size = device_sector_size(fd) if self.can_flush else 512

    def try_zero(self, offset: int, length: int, *, unmap: bool, cheap_only: bool) -> bool:
        """Punch a hole or have the device zero the range; see `Space.try_zero`."""
        if unmap and self._can_punch:
            try:
                fallocate(self._fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
                return True
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._can_punch = False
        if cheap_only or not self._can_zero_out:
            return False  # the kernel would write the zeros itself where the device cannot
        try:
            device_zero_out(self._fd, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._can_zero_out = False
            return False
        return True

    def try_discard(self, offset: int, length: int) -> bool:
        """Discard on the device; see `Space.try_discard`."""
        if not self._can_discard:
            return False
        try:
            device_discard(self._fd, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._can_discard = False
            return False
        return True

    def segments(self, offset: int, end: int) -> Runs:
        """Call everything data: a device does not tell its holes."""
        return [(True, end)]

    def allocated(self) -> int:
        """Return 0: a device takes no space on a file system."""
        return 0
