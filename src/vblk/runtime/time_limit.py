"""Work that must be done within a time.

Owns: the wait for whichever comes first, on a clock that tests may bring.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from vblk.aio.clock import Clock

T = TypeVar("T")


async def within(clock: Clock, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await `work` for `seconds` at most and return its result.

    Raises:
        TimeoutError: The time was over first; `work` was cancelled and has ended.
    """
    task = asyncio.ensure_future(work)
    alarm = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((task, alarm), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()
        alarm.cancel()
        await asyncio.wait((task, alarm))
