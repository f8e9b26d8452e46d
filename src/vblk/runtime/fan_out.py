"""Running many awaitables with a bound on how many run at a time.

Owns: structured fan-out. The first error cancels the others, is raised as
itself, and nothing runs on afterwards.
"""

import asyncio
from collections.abc import Awaitable, Iterable


async def fan_out(calls: Iterable[Awaitable[object]], at_once: int) -> None:
    """Await every call of `calls`, `at_once` side by side.

    `calls` is consumed lazily, so it may be as long as a disk. Returns when all
    are done; raises the first error, after the others have ended.
    """
    source = iter(calls)

    async def worker() -> None:
        for call in source:
            await call

    tasks = [asyncio.ensure_future(worker()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
