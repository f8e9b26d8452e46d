"""The inline fast path: reads and writes that the page cache answers at once.

Owns: `preadv` and `pwritev` with RWF_NOWAIT, the memory of where they do not
work, and what then stands in for such a write. A hit costs one to a few
microseconds, a hop to a worker some tens of them. A read must not wait, ever:
what is not in the cache is the engine's business.

A write into the page cache waits for nothing but the system's own memory. Where
the file system cannot promise that (ext4 and tmpfs have no such writes) plain
writes stand in, as long as the pages that they cover in part are in the cache:
others would have to be read first. What may still hold one up is a system that
throttles its writers, so each is timed: after a slow one the next go to the
workers, more of them each time in a row.
"""

import errno
import mmap
import os
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final

from vblk.aio.engine import Buffer

if TYPE_CHECKING:
    from vblk.aio.leased_map import LeasedMap
    from vblk.aio.residency import Residency

_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
_HITS_BEFORE_MAP: Final = 512
_REUSED_MAX = 64 << 10
_LENGTHS_MAX = 16
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_WRITE_MAX: Final = 256 << 10
"""The longest write, in bytes, that is tried: copying it takes no longer than a hop to a worker."""
_SLOW: Final = 2e-3
"""Seconds: longer than waiting for the interpreter's lock, shorter than any pause of a throttled writer."""
_LEFT_OUT_MAX: Final = 1024
_WITHIN_PAGE: Final = mmap.PAGESIZE - 1


class InlineReader:
    """Reads from one descriptor without waiting.

    Buffers are taken from small free lists, one for each length in use: filling
    a new buffer with zeros would cost more than the copy out of an old one.

    Concurrency: `try_read` runs to completion, in any thread.
    """

    def __init__(self, fd: int, *, may_map: bool = False) -> None:
        """Read from `fd`, which stays the caller's. Not for O_DIRECT descriptors.

        With `may_map`, for files that are open for reading only, a reader that
        is used a lot maps the file: see `vblk.aio.leased_map`.
        """
        self._fd = fd
        self._map: LeasedMap | None = None
        self.read_mapped: Callable[[int, int], bytes | None] | None = None
        """To be asked before `try_read`, where it is set: it saves the system call."""
        self._hits_before_map = _HITS_BEFORE_MAP if may_map else 0
        self._spare: dict[int, list[list[memoryview]]] = {}
        self._residency: Residency | None = None
        self.supported = _NOWAIT != 0 and hasattr(os, "preadv")

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Return exactly `length` bytes from `offset`, or None.

        None means that it would block, that the file ends before, that the
        medium failed (the engine will meet the error and report it) or that
        this kind of file has no such reads, which is remembered.
        """
        if not self.supported:
            return None
        try:
            vector = self._spare[length].pop()
        except (KeyError, IndexError):
            vector = self._new_vector(length)
        try:
            if os.preadv(self._fd, vector, offset, _NOWAIT) != length:
                return None
            if self._hits_before_map or self._map is not None:
                self._count_hit()
            return vector[0].tobytes()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                self.supported = False
            return None
        finally:
            spare = self._spare.get(length)
            if spare is not None:
                spare.append(vector)

    def has(self, offset: int, length: int) -> bool:
        """Tell whether the page cache has all of a range, so that nobody waits who reads it now."""
        if not self.supported:
            return False
        residency = self._residency
        if residency is None or offset + length > residency.size:
            self._residency = residency = self._new_residency()
        return residency is not None and residency.has(offset, length)

    def _new_residency(self) -> "Residency | None":
        """Look at the file as long as it is now."""
        # ctypes is slow to load: only a server comes here.
        from vblk.aio.residency import Residency, is_told

        if self._residency is not None:
            self._residency.close()
        try:
            size = os.fstat(self._fd).st_size
            return Residency(self._fd, size) if size and is_told(self._fd) else None
        except OSError:
            return None

    def close(self) -> None:
        """Read no more, and give the mapping up."""
        self.supported = False
        if self._residency is not None:
            self._residency.close()
        self._hits_before_map = 0
        mapped, self._map, self.read_mapped = self._map, None, None
        if mapped is not None:
            mapped.close()

    def _count_hit(self) -> None:
        """After enough hits, map the file; forget a mapping that the watch has closed."""
        if self._map is None:
            self._hits_before_map -= 1
            if not self._hits_before_map:
                from vblk.aio.leased_map import take

                self._map = take(self._fd)
                self.read_mapped = None if self._map is None else self._map.read
        elif self._map.closed:
            self._map = self.read_mapped = None

    def _new_vector(self, length: int) -> list[memoryview]:
        if length <= _REUSED_MAX and length not in self._spare:
            if len(self._spare) >= _LENGTHS_MAX:
                self._spare.clear()
            self._spare[length] = []
        return [memoryview(bytearray(length))]


class InlineWriter:
    """Writes to one descriptor without waiting.

    Concurrency: `try_write` runs to completion; it belongs to one thread.
    """

    def __init__(self, fd: int, *, may_wait: bool) -> None:
        """Write to `fd`, which stays the caller's. Not for O_DIRECT or O_DSYNC descriptors.

        `may_wait`: let plain writes stand in where there are none that never wait.
        """
        self._fd = fd
        self._may_wait = may_wait
        self._flags = _NOWAIT
        self._byte = bytearray(1)
        self._to_leave_out = 0
        self._leave_out_next = 1
        self.supported = hasattr(os, "pwritev") and (_NOWAIT != 0 or may_wait)

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write all of `data`, whose length counts bytes, or return False.

        False means that a worker should do it, errors included: any part of it
        may be written.
        """
        length = len(data)
        if not self.supported or length > _WRITE_MAX:
            return False
        if not self._flags and (offset | length) & _WITHIN_PAGE and not self._has_edges(offset, length):
            return False
        if self._to_leave_out:
            self._to_leave_out -= 1
            return False
        start = perf_counter()
        try:
            if self._flags:
                done = os.pwritev(self._fd, (data,), offset, self._flags)
            else:
                done = os.pwrite(self._fd, data, offset)
        except OSError as error:
            if self._flags and error.errno in _UNSUPPORTED:
                self._flags = 0
                self.supported = self._may_wait
            return False
        if perf_counter() - start > _SLOW:
            self._to_leave_out = self._leave_out_next
            self._leave_out_next = min(2 * self._leave_out_next, _LEFT_OUT_MAX)
        else:
            self._leave_out_next = 1
        return done == length

    def _has_edges(self, offset: int, length: int) -> bool:
        """Tell whether the pages that a range covers in part, at its ends, are in the cache."""
        if not _NOWAIT:
            return False
        try:
            return all(
                at & _WITHIN_PAGE == 0 or os.preadv(self._fd, (self._byte,), at, _NOWAIT) == 1
                for at in (offset, offset + length)
            )
        except OSError:
            return False

    def close(self) -> None:
        """Write no more."""
        self.supported = False
