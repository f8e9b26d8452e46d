"""Bytes a second: a limit, and a measure.

Owns: the accounts. Time comes from a clock, so that tests own it.
"""

from collections import deque
from typing import Final

from vblk.aio.clock import Clock


class RateLimit:
    """Lets bytes pass at a rate, with a tenth of a second's worth in advance.

    Concurrency: any number of tasks may wait; each pays for itself before it waits,
    so the order is the order of asking.
    """

    def __init__(self, bytes_per_second: int, clock: Clock) -> None:
        assert bytes_per_second > 0
        self._rate = bytes_per_second
        self._clock = clock
        self._paid_until = clock.now()

    async def take(self, length: int) -> None:
        """Return when `length` bytes may pass."""
        now = self._clock.now()
        self._paid_until = max(self._paid_until, now - 0.1) + length / self._rate
        await self._clock.sleep(self._paid_until - now)


class Meter:
    """How fast a count grows, as far as it was noted, over about the last seconds."""

    WINDOW: Final = 3.0
    GAP: Final = 0.1

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._notes: deque[tuple[float, int]] = deque()

    def note(self, count: int) -> None:
        """Note the count as it is now."""
        now = self._clock.now()
        notes = self._notes
        if len(notes) > 1 and now - notes[-2][0] < self.GAP:
            notes.pop()
        notes.append((now, count))
        while len(notes) > 2 and now - notes[1][0] >= self.WINDOW:
            notes.popleft()

    @property
    def rate(self) -> float:
        """What it grows by in a second; 0 where it became less, or nobody knows."""
        if len(self._notes) < 2:
            return 0.0
        (start, before), (end, after) = self._notes[0], self._notes[-1]
        return max(0.0, (after - before) / (end - start)) if end > start else 0.0
