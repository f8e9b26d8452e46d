"""Memory for direct I/O.

Owns: page-aligned buffers and their reuse. It does not know what goes through
them. A buffer belongs to whoever took it until it is given back; one that is
never given back is freed with its last view.
"""

import mmap

from vblk.units import MIB

_KEPT_BYTES_MAX = 16 * MIB


class AlignedBuffers:
    """Buffers that begin on a memory page, as O_DIRECT demands.

    Concurrency: belongs to one thread.
    """

    def __init__(self) -> None:
        self._spare: dict[int, list[memoryview]] = {}
        self._kept = 0

    def take(self, length: int) -> memoryview:
        """Return a writable view of exactly `length` bytes, 1 or more, of any content."""
        size = _size_class(length)
        spare = self._spare.get(size)
        if spare:
            self._kept -= size
            return spare.pop()[:length]
        return memoryview(mmap.mmap(-1, size))[:length]

    def give(self, view: memoryview) -> None:
        """Take a buffer back that `take` returned; its user must not touch it again."""
        whole = memoryview(view.obj)
        if self._kept + len(whole) <= _KEPT_BYTES_MAX:
            self._kept += len(whole)
            self._spare.setdefault(len(whole), []).append(whole)


def _size_class(length: int) -> int:
    """Return the least power of two that holds `length` and a memory page."""
    return max(mmap.PAGESIZE, 1 << (length - 1).bit_length())
