"""An event loop that stays awake for a moment where the next request comes at once.

Owns: when a loop does not go to sleep. To sleep and be woken takes longer than to
answer from the page cache, and a client that waits for each answer pays it each
time.

Others never wait: the loop goes round, and hears everybody as ever. It costs a
processor, for no longer than `PATIENCE` behind an answer, and only where the last
request came within that time.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final

PATIENCE: Final = 60_000
"""Nanoseconds: about twice as long as a client takes that is woken for each answer."""


class Wakefulness:
    """What one client's rhythm says about going to sleep.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(self, now: Callable[[], int] = perf_counter_ns) -> None:
        """Watch the time in nanoseconds."""
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._answered = now() - PATIENCE
        self._pays = False
        self._is_awake = False

    def asked(self) -> None:
        """Note that requests have come."""
        self._pays = self._now() - self._answered < PATIENCE

    def answered(self) -> None:
        """Note that the client may ask again, and stay awake if it will at once."""
        self._answered = self._now()
        if self._pays and not self._is_awake:
            self._is_awake = True
            self._loop.call_soon(self._go_round)

    def _go_round(self) -> None:
        if self._pays and self._now() - self._answered < PATIENCE:
            self._loop.call_soon(self._go_round)
        else:
            self._is_awake = False

    def sleep(self) -> None:
        """Stay awake no more: the client is gone."""
        self._pays = False
