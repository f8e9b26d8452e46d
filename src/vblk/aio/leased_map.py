"""A mapping of a file that nobody can cut short behind our back.

Owns: the read lease, the mapping that it protects, and the watch that gives
both up when somebody wants to change the file. Copying from a mapping saves the
system call of a small read; what makes mappings dangerous is that a file that
gets shorter kills the process that touches the lost pages. A read lease
(F_SETLEASE) takes that danger away: the kernel holds back whoever opens the
file for writing, or truncates it, until the lease is given up or a long grace
time has passed.

Ordering rule: the mapping is closed first, the lease is given up after.

It must not wait on the medium either: only pages that were read within the last
ten seconds, and so are in the page cache, are copied from the mapping.
"""

import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from vblk.units import GIB, KIB

_F_SETSIG: Final = getattr(fcntl, "F_SETSIG", 10)
_PAGE_SHIFT: Final = 12
_SIZE_MAX: Final = 64 * GIB
_SIZE_MIN: Final = 64 * KIB
_TURN_SECONDS: Final = 0.05
_TURNS_OF_TRUST: Final = 200
"""How often the watch looks at the leases, and for how many looks a page counts as cached."""


class LeasedMap:
    """The bytes of a file that were read a moment ago, without a system call.

    Concurrency: `read` and `trust` run to completion on any thread; the watch's
    own thread closes the mapping at any time, after which they do nothing.
    """

    read: Callable[[int, int], bytes | None]
    """Return bytes whose pages were all read lately; None: read them another way."""

    def __init__(self, fd: int, size: int, mapping: mmap.mmap) -> None:
        self._fd = fd
        self._size = size
        self._mapping = mapping
        self._trusted = bytearray(-(-size >> _PAGE_SHIFT))
        self.read = _reader(mapping, self._trusted, size)
        self.closed = False

    def trust(self, offset: int, length: int) -> None:
        """Note that this range, within the file, was just read from the page cache."""
        first = offset >> _PAGE_SHIFT
        count = (offset + length - 1 >> _PAGE_SHIFT) - first + 1
        if offset + length <= self._size:
            self._trusted[first : first + count] = b"\1" * count

    def forget(self) -> None:
        """Trust no page any more: the cache may have let them go."""
        self._trusted[:] = bytes(len(self._trusted))

    def is_wanted_back(self) -> bool:
        """Tell whether somebody waits to change the file."""
        try:
            return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK
        except OSError:
            return True

    def close(self) -> None:
        """Close the mapping and give the lease up. May be called twice, on any thread."""
        _watch.remove(self)

    def release(self) -> None:
        """Do the work of `close`; only the watch calls this, which sees to it that it happens once."""
        if self.closed:
            return
        self.closed = True
        self._mapping.close()
        with suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self._fd)


def _reader(mapping: mmap.mmap, trusted: bytearray, size: int) -> Callable[[int, int], bytes | None]:
    """Build `LeasedMap.read` as a closure: every attribute less counts in a read of a microsecond."""
    find_distrusted = trusted.find

    def read(offset: int, length: int, /) -> bytes | None:
        end = offset + length
        first = offset >> _PAGE_SHIFT
        if end > size or not trusted[first]:
            return None
        if first != end - 1 >> _PAGE_SHIFT and find_distrusted(0, first, (end - 1 >> _PAGE_SHIFT) + 1) >= 0:
            return None
        try:
            return mapping[offset:end]
        except ValueError:  # closed by the watch
            return None

    return read


class _Watch:
    """The thread that looks after all leases of this process, while there are any."""

    def __init__(self) -> None:
        self._maps: set[LeasedMap] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, member: LeasedMap) -> None:
        """Look after one more mapping."""
        with self._lock:
            self._maps.add(member)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vblk-leases", daemon=True)
                self._thread.start()

    def remove(self, member: LeasedMap) -> None:
        """Close a mapping and look after it no more; the last one ends the thread."""
        with self._lock:
            self._maps.discard(member)
            member.release()
            if not self._maps:
                self._wake.set()

    def _run(self) -> None:
        turn = 0
        while True:
            self._wake.wait(_TURN_SECONDS)
            turn += 1
            with self._lock:
                self._wake.clear()
                for member in [member for member in self._maps if member.is_wanted_back()]:
                    self._maps.discard(member)
                    member.release()
                if not self._maps:
                    self._thread = None
                    return
                if turn % _TURNS_OF_TRUST == 0:
                    for member in self._maps:
                        member.forget()


_watch = _Watch()


def take(fd: int) -> LeasedMap | None:
    """Map the file behind `fd`, or return None where the system grants no lease.

    Close what is returned, before `fd`. A lease is granted on a local regular
    file that nobody has open for writing, to its owner or the superuser. `fd`,
    open for reading only, stays the caller's.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    own = -1
    try:
        # A description of its own: locks and leases of `fd` must not be touched.
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        # SIGURG is ignored unless asked for: the watch polls, so that no handler
        # of the process that uses this library is taken over.
        fcntl.fcntl(own, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        size = os.fstat(own).st_size
        if not _SIZE_MIN <= size <= _SIZE_MAX:
            raise OSError
        mapping = mmap.mmap(own, size, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        if own >= 0:
            os.close(own)
        return None
    member = LeasedMap(own, size, mapping)
    _watch.add(member)
    return member
