"""A connection to an NBD export that is made again when it breaks.

Owns: when to connect again, how long requests wait for that, and which of them
are sent a second time. It knows no node.

Ordering rule: a request is sent again only when its connection has ended without
an answer to it; an answer, also an error, is final. While one task connects, all
requests wait for that task.
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any, Final

from vblk.aio.clock import Clock
from vblk.errors import StorageError
from vblk.protocols.nbd_connection import Connection, ConnectionLost
from vblk.runtime.time_limit import within
from vblk.wire.nbd import Exchange, Request

HANDSHAKE_LIMIT: Final = 30.0
"""Seconds that a server has for being reached and for the handshake."""

PAUSE_FIRST: Final = 0.02
PAUSE_MOST: Final = 1.0
"""Seconds between attempts to connect: the first pause, doubled each time, and the longest."""


class Link:
    """The way to an export, over one connection after the other.

    Concurrency: belongs to one event loop's thread; any number of requests.
    """

    def __init__(
        self, connect: Callable[[], Coroutine[Any, Any, Connection]], *, delay: float, clock: Clock
    ) -> None:
        """Nothing is connected yet.

        Args:
            connect: Makes a connection, and checks that it leads to the same export.
            delay: Seconds that requests wait for the server's return; with 0 those
                in flight fail at once, and each later one tries once to connect.
            clock: What is waited on.
        """
        self._connect = connect
        self._delay = delay
        self._clock = clock
        self._connection: Connection | None = None
        self._attempt: asyncio.Task[Connection] | None = None
        self._give_up_at: float | None = None
        self._pause = PAUSE_FIRST
        self._proven = True

    @property
    def alive(self) -> bool:
        """Whether a request would go out at once."""
        return self._connection is not None and self._connection.alive

    async def open(self, patience: float) -> None:
        """Make the first connection, trying for `patience` seconds.

        Raises:
            StorageError: There is no server, or it refuses.
            PeerError: It breaks the protocol.
        """
        await self._connected(patience)

    async def request(self, request: Request) -> Exchange:
        """Return the server's answer, from whichever connection gets one.

        Raises:
            StorageError: No server has answered in time.
            PeerError: The server breaks the protocol.
        """
        give_up_at: float | None = None
        while True:
            try:
                connection = await self._connected(self._delay)
            except StorageError as error:
                text = f"the connection to the server was lost, and not made again: {error.message}"
                raise StorageError(errno.EIO, text) from error
            try:
                exchange = await connection.exchange(request)
            except ConnectionLost as lost:
                now = self._clock.now()
                if give_up_at is None:
                    give_up_at = now + self._delay
                if now >= give_up_at:
                    raise StorageError(errno.EIO, f"the connection to the server was lost: {lost}") from lost
                continue
            self._proven, self._pause = True, PAUSE_FIRST
            return exchange

    async def _connected(self, patience: float) -> Connection:
        if self._connection is not None and self._connection.alive:
            return self._connection
        if self._attempt is None:
            self._attempt = asyncio.create_task(self._connect_again(patience))
            self._attempt.add_done_callback(self._attempt_over)
        return await asyncio.shield(self._attempt)

    def _attempt_over(self, attempt: "asyncio.Task[Connection]") -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # whoever waited for it may have gone

    async def _connect_again(self, patience: float) -> Connection:
        """Try until there is a connection, or the time is over that began with the first attempt."""
        if self._give_up_at is None:
            self._give_up_at = self._clock.now() + patience
        if not self._proven:  # a server that ends each connection without an answer is not hurried
            await self._rest()
        while True:
            left = self._give_up_at - self._clock.now()
            limit = min(HANDSHAKE_LIMIT, left) if left > 0 else HANDSHAKE_LIMIT
            try:
                self._connection = await within(self._clock, limit, self._connect())
            except TimeoutError:
                failure = StorageError(errno.ETIMEDOUT, f"the server did not answer within {limit:.3g} s")
            except StorageError as error:
                failure = error
            else:
                self._give_up_at = None
                self._proven = False
                return self._connection
            if self._clock.now() + self._pause >= self._give_up_at:
                raise failure
            await self._rest()

    async def _rest(self) -> None:
        await self._clock.sleep(self._pause)
        self._pause = min(self._pause * 2, PAUSE_MOST)

    async def close(self) -> None:
        """Say goodbye to the server. Nothing may be in flight. Idempotent."""
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        if self._connection is not None:
            await self._connection.close()
