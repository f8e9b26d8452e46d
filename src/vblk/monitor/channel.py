"""The bytes of one client of a monitor: a socket, or a pair of pipes or files.

Owns: the descriptors, what waits to be sent, and the bound on it. It does not know
what the bytes mean.

Ordering rule: bytes leave in the order in which they were sent. Who does not take
them is given up once more than `WAITING_MAX` of them wait: nobody waits for him.
"""

import array
import asyncio
import os
import socket
from contextlib import suppress
from typing import Final

WAITING_MAX: Final = 4 << 20
"""The most bytes that wait for a client to take them."""

_READ: Final = 64 << 10
_DESCRIPTORS_MAX: Final = 16


class Channel:
    """A client's bytes in both directions, and the descriptors that come beside them.

    Concurrency: belongs to one event loop's thread; one task receives at a time.
    """

    def __init__(
        self, reading: int, writing: int, *, owned: bool = True, peer: socket.socket | None = None
    ) -> None:
        """Use two descriptors, which may be the same; with `owned` they are closed in the end.

        `peer` is the socket behind them, which may bring descriptors.
        """
        self._reading = reading
        self._writing = writing
        self._owned = owned
        self._peer = peer
        self._waiting = bytearray()
        self._sending = False
        self._sent = asyncio.Event()
        self._sent.set()
        self._arrival: asyncio.Future[None] | None = None
        self._descriptors: list[int] = []
        self.closed = False
        self.given_up = False
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)

    @classmethod
    def of_socket(cls, peer: socket.socket) -> "Channel":
        """Take over a connected socket."""
        return cls(peer.fileno(), peer.fileno(), peer=peer)

    @property
    def is_terminal(self) -> bool:
        """Whether a person sits at the other end, whose terminal shows what is typed."""
        return os.isatty(self._reading)

    async def receive(self) -> bytes:
        """Return the next bytes; none at all when the client has gone.

        Others have their turn first, even where the client never stops sending.
        """
        await asyncio.sleep(0)
        while not self.closed:
            try:
                return self._read()
            except BlockingIOError:
                await self._readable()
            except OSError:
                return b""
        return b""

    def _read(self) -> bytes:
        if self._peer is None or self._peer.family != socket.AF_UNIX:
            return os.read(self._reading, _READ)
        size = array.array("i").itemsize
        data, beside, _, _ = self._peer.recvmsg(_READ, socket.CMSG_SPACE(_DESCRIPTORS_MAX * size))
        for level, kind, payload in beside:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(payload[: len(payload) - len(payload) % size])
                self._keep(list(descriptors))
        return data

    def _keep(self, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        while len(self._descriptors) > _DESCRIPTORS_MAX:
            os.close(self._descriptors.pop(0))

    def take_descriptor(self) -> int | None:
        """Return the descriptor that came first, for the caller to close, or None."""
        return self._descriptors.pop(0) if self._descriptors else None

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._arrival = loop.create_future()
        loop.add_reader(self._reading, self._arrived)
        try:
            await self._arrival
        finally:
            self._arrival = None
            if not self.closed:
                loop.remove_reader(self._reading)

    def _arrived(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def send(self, data: bytes) -> None:
        """Send bytes, as soon as the client takes them."""
        if self.closed:
            return
        self._waiting += data
        if len(self._waiting) > WAITING_MAX:
            self.given_up = True
            self.close()
        elif not self._sending:
            self._push()

    def _push(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._writing, self._waiting)]
        except BlockingIOError:
            if not self._sending:
                self._sending = True
                self._sent.clear()
                asyncio.get_running_loop().add_writer(self._writing, self._push)
            return
        except OSError:
            self.close()
            return
        self._stop_sending()

    def _stop_sending(self) -> None:
        if self._sending:
            self._sending = False
            asyncio.get_running_loop().remove_writer(self._writing)
        self._sent.set()

    async def sent(self) -> None:
        """Return when the client has taken everything, or has gone."""
        await self._sent.wait()

    def close(self) -> None:
        """Let go of the descriptors; what waits is lost. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._stop_sending()
        self._waiting.clear()
        if self._arrival is not None:
            asyncio.get_running_loop().remove_reader(self._reading)
            self._arrived()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        if self._peer is not None:
            self._peer.close()
        elif self._owned:
            for descriptor in {self._reading, self._writing}:
                with suppress(OSError):
                    os.close(descriptor)
