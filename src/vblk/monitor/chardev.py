"""Character devices: where a monitor's clients come from.

Owns: their options, and the sockets and streams behind them. A socket takes any
number of clients, one after the other or at a time.

Ordering rule: a socket in the file system is its owner's alone from the moment in
which it is there, and gone when the device is closed.

Source: QEMU's manual, "Character device options".
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

from msgspec import Struct

from vblk.aio.listening import listening_sockets
from vblk.errors import OptionError, StorageError
from vblk.monitor.arguments import read_arguments, require_identifier
from vblk.monitor.channel import Channel
from vblk.options.address import FdAddress, InetAddress, SocketAddress, UnixAddress
from vblk.wire.qmp import QmpError

CLIENTS_MAX: Final = 256
"""The most clients of one socket at a time; others wait until one leaves."""

_KNOWN: Final = frozenset(
    ("file", "memory", "mux", "null", "parallel", "pipe", "pty", "ringbuf", "serial", "udp")
)

Serve = Callable[[Channel], Awaitable[None]]
"""Serves one client to its end."""


class Stdio(Struct, rename="kebab", tag_field="backend", tag="stdio"):
    """Standard input and output."""

    id: str


class Socket(Struct, rename="kebab", tag_field="backend", tag="socket"):
    """A socket: a path, a host and a port, or a descriptor that is there already."""

    id: str
    path: str | None = None
    host: str | None = None
    port: str | None = None
    fd: str | None = None
    server: bool = False
    wait: bool = True


ChardevOptions = Stdio | Socket


def read_chardev(values: dict[str, Any]) -> ChardevOptions:
    """Return the options of a character device from those of `--chardev`.

    Raises:
        QmpError: In QEMU's words.
    """
    if "id" not in values:
        raise QmpError("chardev: no id specified")
    backend = values.get("backend", "")
    if backend in _KNOWN:
        raise QmpError(
            f"the character device '{backend}' is not in this version of vblk: socket and stdio are"
        )
    if backend not in ("socket", "stdio"):
        raise QmpError(f"'{backend}' is not a valid char driver name")
    options = cast("ChardevOptions", read_arguments(values, cast("Any", ChardevOptions), texts=True))
    require_identifier(options.id)
    if isinstance(options, Socket):
        _check_socket(options)
    return options


def _check_socket(options: Socket) -> None:
    given = [name for name in ("path", "host", "fd") if getattr(options, name) is not None]
    if len(given) > 1:
        raise QmpError(f"chardev: socket: {given[0]} and {given[1]} may not be used at the same time")
    if options.port is not None and options.host is None:
        options.host = ""
    elif options.host is not None and options.port is None:
        raise QmpError("chardev: socket: no port given")
    elif not given:
        raise QmpError("chardev: socket: no path, no host and port, and no fd given")
    if options.fd is not None and not options.fd.isdecimal():
        raise QmpError(f"Unable to parse FD number {options.fd}")


class Chardev:
    """One character device that is open. A monitor serves its clients."""

    def __init__(self, options: ChardevOptions) -> None:
        """Open it later, with `open`."""
        self.id = options.id
        self._options = options
        self._listening: list[socket.socket] = []
        self._ready: list[Channel] = []
        self._clients: set[asyncio.Future[None]] = set()
        self._room = asyncio.Event()
        self._room.set()
        self._accepting: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Listen or connect; a server that is to wait returns when its first client has come.

        Raises:
            StorageError: The system refuses.
            OptionError: There can be no such socket.
        """
        options = self._options
        if isinstance(options, Stdio):
            self._ready.append(Channel(0, 1, owned=False))
        elif options.server:
            self._listening = await listening_sockets(_address(options))
            for each in self._listening:
                each.setblocking(False)
            if options.wait:
                self._ready.append(await _accepted(self._listening[0]))
        else:
            self._ready.append(Channel.of_socket(await _connected(options)))

    def attach(self, serve: Serve) -> None:
        """Let a monitor serve the clients, those that are there and those that come."""
        for channel in self._ready:
            self._start(serve, channel)
        self._ready.clear()
        self._accepting = [asyncio.create_task(self._accept(serve, each)) for each in self._listening]

    async def _accept(self, serve: Serve, listening: socket.socket) -> None:
        while True:
            await self._room.wait()
            try:
                self._start(serve, await _accepted(listening))
            except OSError:  # no descriptors left: those who leave give some back
                await asyncio.sleep(1)

    def _start(self, serve: Serve, channel: Channel) -> None:
        task = asyncio.ensure_future(serve(channel))
        self._clients.add(task)
        if len(self._clients) >= CLIENTS_MAX:
            self._room.clear()
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Future[None]") -> None:
        self._clients.discard(task)
        self._room.set()

    async def close(self) -> None:
        """Let every client go, and close. Idempotent."""
        tasks = [*self._accepting, *self._clients]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in self._ready:
            channel.close()
        self._ready.clear()
        for each in self._listening:
            each.close()
        if self._listening and isinstance(self._options, Socket) and self._options.path is not None:
            with suppress(OSError):
                os.unlink(self._options.path)
        self._listening.clear()


async def _accepted(listening: socket.socket) -> Channel:
    peer, _ = await asyncio.get_running_loop().sock_accept(listening)
    return Channel.of_socket(peer)


def _socket_of(text: str) -> socket.socket:
    try:
        found = socket.socket(fileno=int(text))
    except OSError as error:
        raise OptionError(f"the descriptor {text} is no socket: {error.strerror}") from error
    found.setblocking(False)
    return found


def _address(options: Socket) -> SocketAddress:
    if options.fd is not None:
        return FdAddress(int(options.fd))
    if options.path is not None:
        return UnixAddress(options.path)
    return InetAddress(options.host or "localhost", options.port or "")


async def _connected(options: Socket) -> socket.socket:
    """Return a socket that is connected."""
    if options.fd is not None:
        return _socket_of(options.fd)
    loop = asyncio.get_running_loop()
    if options.path is None:
        raise OptionError("a monitor that connects to a host is not in this version of vblk: use server=on")
    found = socket.socket(socket.AF_UNIX)
    found.setblocking(False)
    try:
        await loop.sock_connect(found, options.path)
    except OSError as error:
        found.close()
        raise StorageError(
            error.errno or 0, f"Failed to connect to '{options.path}': {os.strerror(error.errno or 0)}"
        ) from error
    return found
