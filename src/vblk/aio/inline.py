"""The inline fast path: reads that the page cache answers at once.

Owns: `preadv` with RWF_NOWAIT and the memory of where it does not work. A hit
costs a little over a microsecond, a hop to a worker some tens of them. It must
not wait, ever: what is not in the cache is the engine's business.
"""

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vblk.aio.leased_map import LeasedMap

_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
_HITS_BEFORE_MAP: Final = 512
_REUSED_MAX = 64 << 10
_LENGTHS_MAX = 16
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


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

    def close(self) -> None:
        """Read no more, and give the mapping up."""
        self.supported = False
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
