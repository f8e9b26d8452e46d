"""Time as a dependency, so that tests may bring their own.

Owns: the `Clock` seam and its form over the running event loop. Nothing else in
vblk may ask the system what time it is in order to wait or to measure a rate.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock that can be waited on."""

    def now(self) -> float:
        """Return seconds since an arbitrary moment; it never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when `seconds` have passed; at once for 0 or less."""
        ...


class LoopClock:
    """The system's clock, waited on by the running event loop; without one it tells the time all the same."""

    def now(self) -> float:
        """Return the system's monotonic time in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait on the loop."""
        await asyncio.sleep(seconds)
