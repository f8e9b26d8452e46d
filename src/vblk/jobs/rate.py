"""A limit on bytes a second.

Owns: the account. Time comes from a clock, so that tests own it.
"""

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
