"""Turns of the event loop: how tests let others go on without looking at a clock.

Owns: nothing but the turns.
"""

import asyncio
from collections.abc import Callable

TURNS_MAX = 10_000


async def turns(count: int = 5) -> None:
    """Let everybody else go on `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Let others go on until something is true; fail when it never is."""
    for _ in range(TURNS_MAX):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("what was waited for never came true")
