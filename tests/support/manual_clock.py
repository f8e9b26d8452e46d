"""Clocks that tests own: one stands still until it is moved, one runs ahead of every sleeper."""

import asyncio


class ManualClock:
    """Sleepers wake by `advance` alone."""

    def __init__(self) -> None:
        self.time = 100.0
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= 0:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, future))
        await future

    def advance(self, seconds: float) -> None:
        self.time += seconds
        for when, future in self._sleepers:
            if when <= self.time and not future.done():
                future.set_result(None)


class EagerClock:
    """Every sleep is over at once, and the time has passed."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        until = self.time + seconds
        await asyncio.sleep(0)
        self.time = max(self.time, until)
