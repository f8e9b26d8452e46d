"""Cancelling a coroutine after its Nth turn of the event loop.

Owns: the sweep: `cancel_after(call, 1)`, 2, 3, ... until the call ends before
it is cancelled. What the call leaves behind is for the test to judge.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

TURNS_MAX = 10_000


async def cancel_after(call: Coroutine[Any, Any, object], turns: int) -> bool:
    """Run `call`, cancel it after `turns` of the loop; tell whether it was cancelled."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
        if task.done():
            break
    task.cancel()
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False


async def sweep(
    make: Callable[[], Coroutine[Any, Any, object]], check: Callable[[], Coroutine[Any, Any, object]]
) -> int:
    """Cancel fresh calls at every turn until one ends by itself; `check` after each."""
    for turns in range(TURNS_MAX):
        cancelled = await cancel_after(make(), turns)
        await check()
        if not cancelled:
            return turns
    raise AssertionError("the call never ends")
