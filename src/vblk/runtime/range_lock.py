"""Locks on byte ranges: shared among readers, exclusive for a writer.

Owns: who may touch which range now, and who is next. Fair, unless it is asked
to let requests overtake: a request waits for every earlier one that it conflicts
with, held or waiting, so nobody starves and two requests that do not conflict
never wait for each other.
"""

import asyncio
from types import TracebackType

_SPENT = -1
"""Marks a guard that gave up waiting: older guards may still know it."""


class RangeGuard:
    """One range, held or waited for. Release it once; a context manager does."""

    __slots__ = ("_lock", "behind", "end", "exclusive", "held", "in_front", "start", "wake")

    def __init__(self, lock: "RangeLock", start: int, end: int, exclusive: bool) -> None:
        self._lock = lock
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.held = False
        self.wake: asyncio.Future[None] | None = None
        self.in_front = 0  # older guards that exclude this one
        self.behind: list[RangeGuard] = []  # younger ones that this one excludes

    def conflicts(self, other: "RangeGuard") -> bool:
        """Tell whether the two exclude each other."""
        return self.start < other.end and other.start < self.end and (self.exclusive or other.exclusive)

    def release(self) -> None:
        """Let go of the range; those who waited for it go on. Idempotent."""
        if self.held:
            self._lock._remove(self)

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

    def __init__(self, *, overtaking: bool = False) -> None:
        """Make a lock that nobody holds.

        Args:
            overtaking: Grant a request at once that conflicts with nothing held,
                ahead of those that wait. Whoever asks for much may then starve.
        """
        self._overtaking = overtaking
        self._guards: dict[RangeGuard, None] = {}  # held and waiting, the oldest first
        self._exclusive = 0  # how many of them are

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

    def may_share(self, offset: int, length: int) -> bool:
        """Tell whether a shared guard would be held at once: enough for what does not wait meanwhile."""
        if not self._exclusive:
            return True
        end = offset + length
        return not any(
            other.exclusive and other.start < end and offset < other.end
            for other in self._guards
            if other.held or not self._overtaking
        )

    @property
    def idle(self) -> bool:
        """True when nothing is held and nobody waits."""
        return not self._guards

    def _guard(self, offset: int, length: int, *, exclusive: bool) -> RangeGuard:
        assert offset >= 0, "before the start"
        assert length > 0, "an empty range"
        return RangeGuard(self, offset, offset + length, exclusive)

    def _try_acquire(self, guard: RangeGuard) -> bool:
        assert guard not in self._guards, "in use already"
        assert guard.in_front != _SPENT, "a cancelled guard is not used again"
        overtaken: list[RangeGuard] = []
        for other in self._guards:
            if guard.conflicts(other):
                if other.held or not self._overtaking:
                    return False
                overtaken.append(other)
        for other in overtaken:
            guard.behind.append(other)
            other.in_front += 1
        guard.held = True
        self._add(guard)
        return True

    async def _acquire(self, guard: RangeGuard) -> None:
        if self._try_acquire(guard):
            return
        for other in self._guards:
            if guard.conflicts(other):
                other.behind.append(guard)
                guard.in_front += 1
        self._add(guard)
        guard.wake = asyncio.get_running_loop().create_future()
        try:
            await guard.wake
        except asyncio.CancelledError:
            if guard in self._guards:  # else it was granted, and released by another task
                self._remove(guard)
            guard.in_front = _SPENT
            raise
        finally:
            guard.wake = None

    def _add(self, guard: RangeGuard) -> None:
        self._guards[guard] = None
        self._exclusive += guard.exclusive

    def _remove(self, guard: RangeGuard) -> None:
        """Forget a guard, held or waiting, and grant those who waited for it alone."""
        guard.held = False
        del self._guards[guard]
        self._exclusive -= guard.exclusive
        behind, guard.behind = guard.behind, []
        for younger in behind:
            if younger.in_front == _SPENT:
                continue
            younger.in_front -= 1
            if not younger.in_front:
                younger.held = True
                if younger.wake is not None and not younger.wake.done():
                    younger.wake.set_result(None)
