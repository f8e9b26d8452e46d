"""Locks on byte ranges: shared among readers, exclusive for a writer.

Owns: who may touch which range now, and who is next. Fair: a request waits for
every earlier one that it conflicts with, held or waiting, so nobody starves and
two requests that do not conflict never wait for each other.
"""

import asyncio
from types import TracebackType


class RangeGuard:
    """One range, held or waited for. Release it once; a context manager does."""

    __slots__ = ("_lock", "end", "exclusive", "held", "start", "wake")

    def __init__(self, lock: "RangeLock", start: int, end: int, exclusive: bool) -> None:
        self._lock = lock
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.held = False
        self.wake: asyncio.Future[None] | None = None

    def conflicts(self, other: "RangeGuard") -> bool:
        """Tell whether the two exclude each other."""
        return self.start < other.end and other.start < self.end and (self.exclusive or other.exclusive)

    def release(self) -> None:
        """Let go of the range; those who waited for it go on. Idempotent."""
        if self.held:
            self._lock._release(self)

    async def acquire(self) -> None:
        """Wait until the range is ours.

        Cancellation: the place in the queue is given up, or the range released
        if it was granted in the same moment.
        """
        await self._lock._acquire(self)

    async def __aenter__(self) -> "RangeGuard":
        if not self._lock._try_acquire(self):
            await self._lock._acquire(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __enter__(self) -> "RangeGuard":
        assert self.held, "a plain `with` is for guards that a try_ method returned"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RangeLock:
    """Shared and exclusive locks on ranges of bytes.

    Concurrency: belongs to one event loop's thread; `try_` methods and `release`
    run to completion.
    """

    def __init__(self) -> None:
        self._held: list[RangeGuard] = []
        self._waiting: list[RangeGuard] = []

    def shared(self, offset: int, length: int) -> RangeGuard:
        """Return a guard to `async with`: others may share the range."""
        return self._guard(offset, length, exclusive=False)

    def exclusive(self, offset: int, length: int) -> RangeGuard:
        """Return a guard to `async with`: nobody else has any of the range."""
        return self._guard(offset, length, exclusive=True)

    def try_shared(self, offset: int, length: int) -> RangeGuard | None:
        """Return a guard that is held already, or None: it would wait."""
        guard = self._guard(offset, length, exclusive=False)
        return guard if self._try_acquire(guard) else None

    def try_exclusive(self, offset: int, length: int) -> RangeGuard | None:
        """Return a guard that is held already, or None: it would wait."""
        guard = self._guard(offset, length, exclusive=True)
        return guard if self._try_acquire(guard) else None

    @property
    def idle(self) -> bool:
        """True when nothing is held and nobody waits."""
        return not self._held and not self._waiting

    def _guard(self, offset: int, length: int, *, exclusive: bool) -> RangeGuard:
        assert offset >= 0, "before the start"
        assert length > 0, "an empty range"
        return RangeGuard(self, offset, offset + length, exclusive)

    def _try_acquire(self, guard: RangeGuard) -> bool:
        assert not guard.held, "held already"
        for other in self._held:
            if guard.conflicts(other):
                return False
        for other in self._waiting:
            if guard.conflicts(other):
                return False
        guard.held = True
        self._held.append(guard)
        return True

    async def _acquire(self, guard: RangeGuard) -> None:
        if self._try_acquire(guard):
            return
        guard.wake = asyncio.get_running_loop().create_future()
        self._waiting.append(guard)
        try:
            await guard.wake
        except asyncio.CancelledError:
            if guard.held:
                self._release(guard)
            else:
                self._waiting.remove(guard)
                self._grant()
            raise
        finally:
            guard.wake = None

    def _release(self, guard: RangeGuard) -> None:
        guard.held = False
        self._held.remove(guard)
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        """Grant, in order of arrival, all that conflict with nothing held or waiting before."""
        still: list[RangeGuard] = []
        for guard in self._waiting:
            blocked = any(guard.conflicts(other) for other in self._held) or any(
                guard.conflicts(other) for other in still
            )
            if blocked:
                still.append(guard)
                continue
            guard.held = True
            self._held.append(guard)
            if guard.wake is not None and not guard.wake.done():
                guard.wake.set_result(None)
        self._waiting = still
