"""Which pages of a file are in the page cache.

Owns: mincore(2), for which Python has no name, and the mapping that it wants.
It touches no page of that mapping. Source: mincore(2), mmap(2).
"""

import ctypes
import mmap
import os
from typing import Final

_PAGE: Final = 4096
_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def is_told(fd: int) -> bool:
    """Tell whether the kernel says what is cached of a file; to those who may not write to it, all is."""
    return os.fstat(fd).st_uid == os.geteuid() or os.access(f"/proc/self/fd/{fd}", os.W_OK)


class Residency:
    """Asks which pages of one file are cached."""

    def __init__(self, fd: int, size: int) -> None:
        """Ask about the first `size` bytes of `fd`.

        Raises:
            OSError: The file cannot be mapped.
        """
        self.size = size
        self._answer = (ctypes.c_char * 256)()
        self._address: int | None = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if self._address == _FAILED:
            raise _error()

    def ask(self, answer: bytearray) -> None:
        """Write a 1 for each page of 4096 bytes that is cached, a 0 for each other.

        Args:
            answer: One byte a page.

        Raises:
            OSError: The kernel does not tell.
        """
        assert len(answer) * 4096 >= self.size
        place = (ctypes.c_char * len(answer)).from_buffer(answer)
        if self._address is not None and _libc.mincore(self._address, self.size, place):
            raise _error()

    def has(self, offset: int, length: int) -> bool:
        """Tell whether all pages of a range are cached; what is behind the first `size` bytes is not."""
        if self._address is None or offset + length > self.size:
            return False
        first = offset & -_PAGE
        count = -(-(offset + length - first) // _PAGE)
        if count > len(self._answer):
            self._answer = (ctypes.c_char * count)()
        answer = self._answer
        if _libc.mincore(self._address + first, offset + length - first, answer):
            return False
        return answer.raw[:count] == b"\1" * count

    def close(self) -> None:
        """Give the mapping up. Idempotent."""
        address, self._address = self._address, None
        if address is not None:
            _libc.munmap(address, self.size)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
