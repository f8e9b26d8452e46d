"""A mapping of a file that nobody can cut short behind our back.

Owns: the read lease, the mapping that it protects, the knowledge of which pages
are cached, and the watch that keeps all three true. Copying from a mapping
saves the system call of a small read; what makes mappings dangerous is that a
file that gets shorter kills the process that touches the lost pages. A read
lease (F_SETLEASE) takes that danger away: the kernel holds back whoever opens
the file for writing, or truncates it, until the lease is given up or a long
grace time has passed.

It must not wait on the medium either: only pages that the kernel called cached
a moment ago (mincore) are copied from the mapping.

Ordering rule: the mapping is closed first, the lease is given up after.
"""

import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from vblk.units import GIB, KIB

_F_SETSIG: Final = getattr(fcntl, "F_SETSIG", 10)
_PAGE_SHIFT: Final = 12
_SIZE_MAX: Final = 64 * GIB
_SIZE_MIN: Final = 64 * KIB
_TURN_SECONDS: Final = 0.05
_TURNS_OF_TRUST: Final = 40
"""How often the watch looks at the leases, and for how many looks it believes what is cached."""


class _Residency(Protocol):
    """Asks the kernel which pages of a file are cached."""

    def ask(self, answer: bytearray) -> None:
        """Write a 1 for each cached page, a 0 for each other."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class LeasedMap:
    """The bytes of a file that are cached, without a system call.

    Concurrency: `read` runs to completion on any thread; the watch's own thread
    closes the mapping at any time, after which it returns None.
    """

    read: Callable[[int, int], bytes | None]
    """Return bytes whose pages are cached; None: read them another way."""

    def __init__(self, fd: int, size: int, mapping: mmap.mmap, residency: _Residency) -> None:
        self._fd = fd
        self._mapping = mapping
        self._residency = residency
        self._cached = bytearray(-(-size >> _PAGE_SHIFT))
        self.read = _reader(mapping, self._cached, size)
        self.closed = False

    def refresh(self) -> None:
        """Ask the kernel anew which pages are cached."""
        self._residency.ask(self._cached)

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
        self._residency.close()
        with suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self._fd)


def _reader(mapping: mmap.mmap, cached: bytearray, size: int) -> Callable[[int, int], bytes | None]:
    """Build `LeasedMap.read` as a closure: every attribute less counts in a read of a microsecond."""
    find_missing = cached.find

    def read(offset: int, length: int, /) -> bytes | None:
        end = offset + length
        first = offset >> _PAGE_SHIFT
        if end > size or not cached[first]:
            return None
        if first != end - 1 >> _PAGE_SHIFT and find_missing(0, first, (end - 1 >> _PAGE_SHIFT) + 1) >= 0:
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
                        member.refresh()


_watch = _Watch()


def take(fd: int) -> LeasedMap | None:
    """Map the file behind `fd`, or return None where the system grants no lease.

    Close what is returned, before `fd`. A lease is granted on a local regular
    file that nobody has open for writing, to its owner or the superuser. `fd`,
    open for reading only, stays the caller's.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    # ctypes is slow to load: only a reader that is used a lot comes here.
    from vblk.aio.residency import Residency

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
        member = LeasedMap(own, size, mapping, Residency(own, size))
        member.refresh()
    except (OSError, ValueError):
        if own >= 0:
            os.close(own)
        return None
    _watch.add(member)
    return member
