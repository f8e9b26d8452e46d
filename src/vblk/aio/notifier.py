"""The one primitive by which a completion source wakes the event loop.

Owns: `EventNotifier` and its POSIX forms. A worker thread, an io_uring, a
completion port, a C library's callback thread or a signal handler publishes its
result first, then calls `set`; the loop clears first, then collects. That order
on both sides is what makes a lost wake-up impossible. It must not know what is
published, nor by whom.
"""

import asyncio
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

from vblk.errors import Unsupported


class EventNotifier(ABC):
    """An event that any thread can set and one event loop can watch.

    Concurrency: `set` may be called from any thread and from a signal handler,
    and never blocks. `attach`, `detach` and `close` belong to the loop's thread.
    """

    @abstractmethod
    def set(self) -> None:
        """Make the event pending; calls that find it pending coalesce.

        After `close` this does nothing, so that a late completion is harmless.
        """

    @abstractmethod
    def test_and_clear(self) -> bool:
        """Tell whether the event was pending, and clear it."""

    @abstractmethod
    def attach(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        """Call `callback` on `loop` after each `set`, the event being cleared before.

        Calls to `set` that coalesce give one callback.
        """

    @abstractmethod
    def detach(self) -> None:
        """Stop calling back. A pending event stays pending. Idempotent."""

    @abstractmethod
    def close(self) -> None:
        """Detach and release the descriptors. Idempotent, in any order with the rest."""


class DescriptorNotifier(EventNotifier):
    """A notifier over a readable descriptor: an eventfd, or a non-blocking pipe.

    Invariant: whenever nobody is inside `set`, a true `_pending` means that the
    descriptor is readable or that `test_and_clear` is about to answer true.
    """

    def __init__(self, read_fd: int, write_fd: int, token: bytes) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._token = token
        self._pending = False
        # Only `close` makes the lock necessary: a descriptor's number may belong
        # to another file a moment later. It is re-entrant for signal handlers.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._callback: Callable[[], object] | None = None

    def set(self) -> None:
        """Make the event pending; see `EventNotifier.set`."""
        if self._pending:
            return
        with self._lock:
            if self._write_fd < 0:
                return
            self._pending = True
            with suppress(BlockingIOError):  # the pipe is full, hence readable
                os.write(self._write_fd, self._token)

    def test_and_clear(self) -> bool:
        """Tell whether the event was pending, and clear it."""
        with self._lock:
            if self._read_fd < 0:
                return False
            was_set = False
            with suppress(BlockingIOError):
                while os.read(self._read_fd, 4096):
                    was_set = True
                    if self._read_fd == self._write_fd:
                        break  # one read empties an eventfd
            # After the read, not before: a signal handler that sets the event
            # between the two must not leave `_pending` true and nothing to read.
            self._pending = False
            return was_set

    def attach(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        """Call `callback` on `loop` after each `set`; see `EventNotifier.attach`."""
        assert self._loop is None, "attached already"
        assert self._read_fd >= 0, "closed"
        loop.add_reader(self._read_fd, self._on_readable)
        self._loop, self._callback = loop, callback

    def _on_readable(self) -> None:
        callback = self._callback
        if self.test_and_clear() and callback is not None:
            callback()

    def detach(self) -> None:
        """Stop calling back; see `EventNotifier.detach`."""
        loop, self._loop, self._callback = self._loop, None, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._read_fd)

    def close(self) -> None:
        """Detach and release the descriptors; see `EventNotifier.close`."""
        self.detach()
        with self._lock:
            descriptors = {self._read_fd, self._write_fd} - {-1}
            self._read_fd = self._write_fd = -1
            self._pending = False
            for fd in descriptors:
                os.close(fd)

    def __del__(self) -> None:
        for fd in {getattr(self, "_read_fd", -1), getattr(self, "_write_fd", -1)} - {-1}:
            os.close(fd)


def _eventfd_notifier() -> DescriptorNotifier:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    return DescriptorNotifier(fd, fd, (1).to_bytes(8, sys.byteorder))


def _pipe_notifier() -> DescriptorNotifier:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    return DescriptorNotifier(read_fd, write_fd, b"\0")


def create_notifier() -> EventNotifier:
    """Return the best notifier of this system: an eventfd, or else a pipe.

    Raises:
        Unsupported: On Windows, whose events this version does not use.
    """
    if sys.platform == "win32":
        raise Unsupported("This version of vblk has no event notifier for Windows")
    if hasattr(os, "eventfd"):
        try:
            return _eventfd_notifier()
        except OSError:
            pass  # a sandbox that forbids eventfd usually allows pipes
    return _pipe_notifier()
