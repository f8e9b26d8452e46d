"""A number that only rises, and those who wait for it.

Owns: the number and its waiters. Sequence numbers of a log that have become
durable, bytes that a job has copied: whoever needs "at least n" waits here.
"""

import asyncio
import heapq


class Watermark:
    """A monotonic integer with waiters.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._failure: BaseException | None = None
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0

    @property
    def value(self) -> int:
        """The present mark."""
        return self._value

    def advance(self, value: int) -> None:
        """Raise the mark to `value` and wake all who waited for as much.

        A lower value changes nothing: completions may arrive out of order.
        """
        if value <= self._value:
            return
        self._value = value
        while self._waiters and self._waiters[0][0] <= value:
            future = heapq.heappop(self._waiters)[2]
            if not future.done():
                future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Raise `error` in all who wait, now and later, for more than was reached."""
        if self._failure is not None:
            return
        self._failure = error
        for _, _, future in self._waiters:
            if not future.done():
                future.set_exception(error)
        self._waiters.clear()

    async def reached(self, value: int) -> None:
        """Return when the mark is at least `value`.

        Raises what `fail` was given, if the mark is still below.
        """
        if self._value >= value:
            return
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        entry = (value, self._arrivals, future)
        heapq.heappush(self._waiters, entry)
        try:
            await future
        except asyncio.CancelledError:
            # Without this a loop of waits with time limits would grow for ever.
            if entry in self._waiters:
                self._waiters.remove(entry)
                heapq.heapify(self._waiters)
            raise
