"""Running many awaitables with a bound on how many run at a time.

Owns: structured fan-out. The first error cancels the others, is raised as
itself, and nothing runs on afterwards.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

PIECES_AT_ONCE: Final = 4


async def fan_out(calls: Iterable[Awaitable[object]], at_once: int) -> None:
    """Await every call of `calls`, `at_once` side by side.

    `calls` is consumed lazily, so it may be as long as a disk; a generator that
    makes each call when it is asked for the next leaves none behind on an error.
    Returns when all are done; raises the first error, after the others have
    ended.

    Cancellation: raised when all that ran has ended, however often it comes.
    """
    source = iter(calls)
    ended = 0

    async def worker() -> None:
        nonlocal ended
        for call in source:
            await call
        ended += 1

    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame: no cycle, please
    if ended < at_once:
        raise asyncio.CancelledError  # a call was cancelled from within: not everything is done


async def in_pieces(
    length: int, most: int, request: Callable[[int, int], Awaitable[object]], at_once: int = PIECES_AT_ONCE
) -> None:
    """Carry out a request on a range in pieces of `most` bytes, some at a time.

    `request` gets where a piece begins in the range, and how long it is.
    """
    if length <= most:
        await request(0, length)
    else:
        pieces = (request(at, min(most, length - at)) for at in range(0, length, most))
        await fan_out(pieces, at_once)
