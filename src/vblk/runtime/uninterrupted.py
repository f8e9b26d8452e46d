"""Work that a cancellation may not cut in half.

Owns: the wait for it. Closing files, and changes that are either made or taken
back, run to their end whoever loses patience; the cancellation is raised then.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` and return its result.

    Cancellation: raised once `work` has ended, with its error as the cause.
    """
    task = asyncio.ensure_future(work)
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        raise interruption from (None if task.cancelled() else task.exception())
    return task.result()
