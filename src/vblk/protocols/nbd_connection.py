"""One connection to an NBD server.

Owns: the socket, the tasks that wait for answers, and what ends a connection.
What the bytes mean is decided in `vblk.wire.nbd`. It never connects again;
`nbd_link` does.

Ordering rule: once TLS was agreed on, everything goes through its session, in both
directions. A header and its payload are written without a wait between them.
A cancelled request that was sent is waited for, for a bounded time, so that no
later request can be overtaken by it; then the connection is given up.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from vblk.aio.clock import Clock
from vblk.aio.tls import TlsSession
from vblk.errors import BlockError, PeerError, StorageError
from vblk.protocols.not_connected import not_connected
from vblk.units import KIB
from vblk.wire.nbd import ClientHandshake, ClientSession, Exchange, Export, Request
from vblk.wire.nbd.numbers import ALLOCATION_CONTEXT, ESHUTDOWN

IN_FLIGHT_MAX: Final = 64
"""How many requests wait for an answer at a time."""

CANCELLED_WAIT: Final = 2.0
"""Seconds that a cancelled request is waited for before its connection is given up."""

_JOINED_MAX: Final = 16 * KIB
_HANDSHAKE_ROOM: Final = 4 * KIB
_ENCRYPTED_ROOM: Final = 64 * KIB


class ConnectionLost(Exception):
    """The connection has ended before the request was answered. It may be sent again."""


class Address(NamedTuple):
    """Where a server listens: a path, or a host and a port."""

    path: str | None = None
    host: str = ""
    port: str = ""

    def __str__(self) -> str:
        return self.path if self.path is not None else f"{self.host}:{self.port}"


class Connection(asyncio.BufferedProtocol):
    """A connection from its first byte to its last.

    Concurrency: belongs to one event loop's thread; any number of requests.
    """

    def __init__(
        self,
        export_name: str,
        clock: Clock,
        secure: Callable[[], TlsSession] | None,
        context: str = ALLOCATION_CONTEXT,
    ) -> None:
        """Wait for the server's greeting; `secure` begins TLS, where it is wanted."""
        loop = asyncio.get_running_loop()
        self._clock = clock
        self._handshake = ClientHandshake(export_name, tls=secure is not None, context=context)
        self._secure = secure
        self._tls: TlsSession | None = None
        self._room = memoryview(bytearray(_HANDSHAKE_ROOM if secure is None else _ENCRYPTED_ROOM))
        self._session: ClientSession | None = None
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[Exchange]] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._writable = asyncio.Event()
        self._writable.set()
        self._over: Exception | None = None
        self.established: asyncio.Future[Export] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()

    @property
    def alive(self) -> bool:
        """Whether requests may still be sent."""
        return self._over is None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes go."""
        return self._room if self._session is None or self._tls is not None else self._session.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that came; whoever they answer goes on."""
        if self._over is not None:
            return
        try:
            if self._tls is not None:
                self._decrypt(self._tls, bytes(self._room[:nbytes]))
            elif self._session is None:
                self._shake_hands(self._handshake.receive(bytes(self._room[:nbytes])))
            else:
                self._hand_out(self._session.received(nbytes))
        except PeerError as error:
            self.abort(error)
        except BlockError as error:  # the server has refused
            assert self._transport is not None
            if not self._handshake.awaits_tls:
                self._write(self._handshake.farewell())
            self._transport.close()
            self._end(error)

    def _hand_out(self, answered: list[Exchange]) -> None:
        for exchange in answered:
            waiter = self._waiting.pop(exchange.cookie)
            if not waiter.done():
                waiter.set_result(exchange)

    def _decrypt(self, tls: TlsSession, data: bytes) -> None:
        assert self._transport is not None
        try:
            plain = memoryview(tls.receive(data))
        finally:
            self._transport.write(tls.to_send())
        if tls.handshake_done and self._handshake.awaits_tls:
            self._write(self._handshake.secured())
        if self._session is None:
            self._shake_hands(self._handshake.receive(bytes(plain)))
            return
        while plain:
            room = self._session.room()
            count = min(len(room), len(plain))
            room[:count] = plain[:count]
            plain = plain[count:]
            self._hand_out(self._session.received(count))

    def _write(self, *pieces: bytes | bytearray | memoryview) -> None:
        assert self._transport is not None
        for piece in pieces:
            if self._tls is None:
                self._transport.write(piece)
            else:
                self._tls.send(piece)
        if self._tls is not None:
            self._transport.write(self._tls.to_send())

    def _shake_hands(self, to_send: bytes) -> None:
        assert self._transport is not None
        self._write(to_send)
        if self._handshake.awaits_tls and self._tls is None:
            assert self._secure is not None
            tls = self._secure()
            self._transport.write(tls.to_send())
            self._tls = tls
        export = self._handshake.export
        if export is not None:
            self._session = ClientSession(export)
            if not self.established.done():
                self.established.set_result(export)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        if self._session is None:
            self._end(self._broken_off(exc))
        else:
            self._end(ConnectionLost("the server closed the connection" if exc is None else str(exc)))
        if not self._gone.done():
            self._gone.set_result(None)

    def _broken_off(self, exc: Exception | None) -> StorageError:
        """Return the error of a server that ends the connection amid the handshake, in QEMU's words."""
        number = exc.errno if isinstance(exc, OSError) and exc.errno else errno.ECONNABORTED
        if self._handshake.awaits_tls:
            text = "TLS handshake failed: The TLS connection was non-properly terminated."
        elif number == errno.EPIPE:
            text = "Failed to send option request header: Unable to write to socket: Broken pipe"
        else:
            reason = "Unexpected end-of-file before all data were read"
            if self._tls is not None:
                reason = "Cannot read from TLS channel: Software caused connection abort"
            elif exc is not None:
                reason = f"Unable to read from socket: {os.strerror(number)}"
            text = f"Failed to read {self._handshake.awaited}: {reason}"
        return StorageError(number, text)

    def pause_writing(self) -> None:
        """Hold requests back: the server does not keep up."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let requests through again."""
        self._writable.set()

    # What the link calls

    async def exchange(self, request: Request) -> Exchange:
        """Send a request and return its answer, which may be an error of the server.

        Raises:
            ConnectionLost: The connection ended first.
            PeerError: The server broke the protocol meanwhile.

        Cancellation: see the module's ordering rule.
        """
        async with self._slots:
            while self._over is None and not self._writable.is_set():
                await self._writable.wait()
            if self._over is not None:
                raise self._over
            assert self._session is not None
            exchange, header = self._session.begin(request)
            waiter: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
            self._waiting[exchange.cookie] = waiter
            payload = request.payload
            if payload is None:
                self._write(header)
            elif len(payload) <= _JOINED_MAX:
                self._write(b"".join((header, payload)))
            else:
                self._write(header, payload)
            try:
                answer = await asyncio.shield(waiter)
            except asyncio.CancelledError:
                await self._see_out(waiter)
                raise
        if answer.error == ESHUTDOWN:
            self._leave()
            raise ConnectionLost("the server shuts down")
        return answer

    async def _see_out(self, waiter: "asyncio.Future[Exchange]") -> None:
        """Wait until a cancelled request is over, in one way or the other."""
        alarm = asyncio.ensure_future(self._clock.sleep(CANCELLED_WAIT))
        try:
            await asyncio.wait((waiter, alarm), return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
            if not waiter.done():
                self.abort(ConnectionLost("a cancelled request was not answered"))
            waiter.exception()

    def abort(self, why: Exception) -> None:
        """End the connection at once; all requests in flight get `why`."""
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, why: Exception) -> None:
        if self._over is not None:
            return
        self._over = why
        self._session = None  # it refers to the memory of those who read
        self._writable.set()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(why)
        if not self.established.done():
            if isinstance(why, ConnectionLost):
                why = self._broken_off(None)
            self.established.set_exception(why)
            self.established.exception()  # whoever waited may have gone

    def _leave(self) -> None:
        """Say goodbye and close the socket when that was sent."""
        if self._over is None and self._session is not None and self._transport is not None:
            self._write(self._session.farewell())
            if self._tls is not None:
                self._tls.farewell()
                self._transport.write(self._tls.to_send())
            self._transport.close()
            self._end(ConnectionLost("the connection was closed"))

    async def close(self) -> None:
        """Say goodbye and wait until the socket is closed. Idempotent.

        Cancellation: the socket is closed at once.
        """
        self._leave()
        if self._transport is None:
            return
        alarm = asyncio.ensure_future(self._clock.sleep(CANCELLED_WAIT))
        try:
            await asyncio.wait((self._gone, alarm), return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
            self._transport.abort()


async def connect(
    address: Address,
    export_name: str,
    clock: Clock,
    secure: Callable[[], TlsSession] | None = None,
    context: str = ALLOCATION_CONTEXT,
) -> tuple[Connection, Export]:
    """Connect and go through the handshake, over TLS if `secure` begins one.

    `context` is what tells the holes.

    Raises:
        StorageError: There is no server, or it refuses.
        PeerError: It is no NBD server, or a broken one.

    Cancellation: the socket is closed.
    """
    loop = asyncio.get_running_loop()
    connection = Connection(export_name, clock, secure, context)
    try:
        if address.path is not None:
            await loop.create_unix_connection(lambda: connection, address.path)
        else:
            port: Any = address.port  # a number or the name of a service, which its type forgets
            transport, _ = await loop.create_connection(lambda: connection, address.host, port)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        export = await connection.established
    except (OSError, ValueError) as error:
        connection.abort(ConnectionLost("it was never made"))
        raise not_connected(address, error) from error
    except BaseException:
        connection.abort(ConnectionLost("it was given up"))
        raise
    return connection, export
