"""Several connections to one export, as many as there is work for.

Owns: which of them a request goes over, and when one more is made. Each makes
itself again when it breaks (`nbd_link`).

Ordering rule: a request goes over one connection that lives, if there is one, and
stays there. A flush covers what was answered before it over any of them: that is
what a server says that takes several (NBD_FLAG_CAN_MULTI_CONN).
"""

import asyncio
from collections.abc import Callable
from typing import Final

from vblk.errors import BlockError
from vblk.protocols.nbd_link import Link
from vblk.wire.nbd import Exchange, Request

BUSY: Final = 4
"""So many requests in flight over each connection there are before one more is made."""


class Pool:
    """The way to an export, over up to `limit` connections.

    Concurrency: belongs to one event loop's thread; any number of requests.
    """

    def __init__(self, link: Callable[[], Link]) -> None:
        """Nothing is connected yet; `link` returns one more way."""
        self.limit = 1
        self._make = link
        self._links = [link()]
        self._busy: dict[Link, int] = {self._links[0]: 0}
        self._growth: asyncio.Task[None] | None = None

    async def open(self, patience: float) -> None:
        """Make the first connection, trying for `patience` seconds.

        Raises as `Link.open`.
        """
        await self._links[0].open(patience)

    async def request(self, request: Request) -> Exchange:
        """Return the server's answer; see `Link.request`."""
        if len(self._links) == 1 and self.limit == 1:
            return await self._links[0].request(request)
        link = min(self._links, key=lambda each: (not each.alive, self._busy[each]))
        if self._growth is None and self._has_work_for_more():
            self._growth = asyncio.create_task(self._grow())
        self._busy[link] += 1
        try:
            return await link.request(request)
        finally:
            self._busy[link] -= 1

    def _has_work_for_more(self) -> bool:
        return len(self._links) < self.limit and sum(self._busy.values()) >= BUSY * len(self._links)

    async def _grow(self) -> None:
        """Make more connections. A server that does not take one is not asked again."""
        while self._has_work_for_more():
            link = self._make()
            try:
                await link.open(0)
            except BlockError:
                self.limit = len(self._links)
                await link.close()
            except asyncio.CancelledError:
                await link.close()
                raise
            else:
                self._links.append(link)
                self._busy[link] = 0
        self._growth = None

    async def close(self) -> None:
        """Say goodbye to the server. Nothing may be in flight. Idempotent."""
        if self._growth is not None:
            self._growth.cancel()
            await asyncio.wait([self._growth])
        for link in self._links:
            await link.close()
