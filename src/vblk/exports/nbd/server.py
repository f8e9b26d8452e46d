"""The NBD server: addresses on which it listens, exports that clients find by name.

Owns: the listening sockets, the number of clients, and which export has which name.
What a client does is the business of its connection.

Ordering rule: a socket in the file system is its owner's alone from the moment in
which it is there. Beyond the limit of clients none is accepted; who waits is
served when another one leaves.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from vblk.aio.listening import address_of, listening_sockets
from vblk.aio.tls import Authorization, TlsCredentials
from vblk.errors import GraphError
from vblk.exports.nbd.connection import Connection
from vblk.exports.nbd.export import NbdExport
from vblk.graph.registry import Graph
from vblk.options.address import SocketAddress, UnixAddress
from vblk.units import MIB
from vblk.wire.nbd.server_handshake import Offer

ACCEPTED_AT_ONCE: Final = 16
UNIX_BUFFER: Final = MIB
"""How much the system keeps of what a client has not taken, in bytes, where it allows that much."""

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE: Final = 1.0
"""Seconds without accepting, when the system has no descriptors left."""


class NbdServer:
    """Serves exports of one graph.

    `report` is told in one sentence what clients do wrong. `on_leave` is called when
    a client has gone, and told whether it had chosen an export.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        tls: TlsCredentials | None = None,
        authorization: Authorization | None = None,
        max_connections: int = 100,
        handshake_limit: float = 10.0,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Serve nothing yet.

        Args:
            graph: The graph of all exports.
            tls: Demands TLS of every client, and proves itself by these.
            authorization: Says which clients may come, of those who have proven who they are.
            max_connections: How many clients are served at a time; 0: any number.
            handshake_limit: Seconds that a client has to choose its export.
            report: Takes what clients do wrong.
        """
        self.graph = graph
        self.tls = tls
        self.authorization = authorization
        self.handshake_limit = handshake_limit
        self.report = report
        self.on_leave: Callable[[bool], None] = lambda was_served: None
        self.addresses: list[SocketAddress] = []
        """Where it listens; a port that the system chose is filled in."""
        self._max = max_connections
        self._exports: dict[str, NbdExport] = {}
        self._connections: set[Connection] = set()
        self._sockets: list[socket.socket] = []
        self._accepting = False
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False

    # Exports

    def add(self, export: NbdExport) -> None:
        """Let clients find an export.

        Raises:
            GraphError: Another one has its name.
        """
        if export.name in self._exports:
            raise GraphError(f"NBD server already has export named '{export.name}'")
        self._exports[export.name] = export
        export.server = self

    def remove(self, export: NbdExport) -> None:
        """Let no client find an export any more. Idempotent."""
        if self._exports.get(export.name) is export:
            del self._exports[export.name]

    def find(self, name: str) -> NbdExport | None:
        """Return the export of that name that takes clients."""
        return self._exports.get(name)

    def offers(self) -> Mapping[str, Offer]:
        """Return what clients may choose from."""
        return {name: export.offer() for name, export in self._exports.items()}

    # Clients

    @property
    def clients(self) -> int:
        """How many are connected, those included that have not chosen yet."""
        return len(self._connections)

    async def listen(self, address: SocketAddress) -> None:
        """Take clients at an address too.

        Raises:
            StorageError: The system refuses.
            OptionError: There can be no such address.
        """
        sockets = await listening_sockets(address)
        self._sockets += sockets
        self.addresses += [address_of(sock, address) for sock in sockets]
        for sock in sockets:
            sock.setblocking(False)
            if self._accepting:
                asyncio.get_running_loop().add_reader(sock, self._accept, sock)
        self._watch()

    def _watch(self) -> None:
        """Accept clients, or do not, as the limit says."""
        wanted = not self._closed and self._pause is None and not 0 < self._max <= len(self._connections)
        if wanted == self._accepting:
            return
        self._accepting = wanted
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            if wanted:
                loop.add_reader(sock, self._accept, sock)
            else:
                loop.remove_reader(sock)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if not self._accepting:
                return
            try:
                client, _ = sock.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self.report(f"a client cannot be accepted: {error.strerror}")
                    self._pause = asyncio.get_running_loop().call_later(_PAUSE, self._end_pause)
                    self._watch()
                return
            if client.family == socket.AF_UNIX:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
            else:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._connections.add(Connection(self, client))
            self._watch()

    def _end_pause(self) -> None:
        self._pause = None
        self._watch()

    def forget(self, connection: Connection, *, was_served: bool) -> None:
        """Note that a client is gone, and all of its requests have ended."""
        self._connections.discard(connection)
        self._watch()
        self.on_leave(was_served)

    # The end

    async def close(self) -> None:
        """Take no more clients, end all exports, and let every client go. Idempotent.

        What clients asked for ends. Cancellation: the sockets are closed.
        """
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._watch()
        self._close_sockets()
        await asyncio.gather(*(export.stop() for export in list(self._exports.values())))
        await asyncio.gather(*(connection.leave() for connection in list(self._connections)))

    def _close_sockets(self) -> None:
        for sock, address in zip(self._sockets, self.addresses, strict=True):
            sock.close()
            if isinstance(address, UnixAddress):
                with suppress(OSError):
                    os.unlink(address.path)
        self._sockets.clear()
