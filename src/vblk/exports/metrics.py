"""Prometheus asks over HTTP what was counted.

Owns: a responder to `GET /metrics` and to nothing else, on a loopback address or
a unix socket; one request a connection, a bounded number of connections, a
bounded request, and a bounded time for each. What it says comes from a function.

Source: RFC 9112 (HTTP/1.1) and Prometheus, "Text-based format".
"""

import asyncio
import ipaddress
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

from vblk.errors import OptionError, StorageError
from vblk.exports.export import Export
from vblk.graph.statistics import Measured, prometheus_text

CONNECTIONS_MAX: Final = 16
REQUEST_MAX: Final = 8 * 1024
"""The longest request, in bytes, with all its headers."""
PATIENCE: Final = 5.0
"""Seconds for a request to arrive, and again for its answer to be taken."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_UNIX: Final = "unix:"


class MetricsServer:
    """Answers who asks for metrics.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(self, measure: Callable[[], Iterable[Measured]]) -> None:
        """Tell what `measure` returns at the time of each request."""
        self._measure = measure
        self._server: asyncio.Server | None = None
        self._path: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, address: str) -> None:
        """Listen on `unix:PATH`, `PORT` or `HOST:PORT`, whose host is a loopback address.

        Raises:
            OptionError: It is no such address.
            StorageError: It cannot be had.
        """
        listener = _listener(address)
        self._path = address.removeprefix(_UNIX) if address.startswith(_UNIX) else None
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=REQUEST_MAX)

    @property
    def port(self) -> int:
        """The number of the port, which is of use where the system chose it; 0 for a unix socket."""
        assert self._server is not None
        return 0 if self._path is not None else int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, and leave those who have not got their answer. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) == CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(PATIENCE):
                answer = self._answer(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
        except asyncio.LimitOverrunError:
            writer.write(_response("431 Request Header Fields Too Large"))
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            pass  # gone, or too slow
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request")
        if words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "Allow: GET, HEAD\r\n")
        if words[1].partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found")
        body = prometheus_text(self._measure()).encode()
        return _response("200 OK", f"Content-Type: {CONTENT_TYPE}\r\n", body, head_only=words[0] == b"HEAD")


@asynccontextmanager
async def serving_metrics(
    address: str | None, exports: Callable[[], Iterable[Export]]
) -> AsyncGenerator[None]:
    """Tell, while the block runs, what the exports of that moment were asked for; without address nothing.

    Raises as `MetricsServer.listen`.
    """
    if address is None:
        yield
        return
    server = MetricsServer(lambda: [measured(export) for export in exports() if not export.handle.closed])
    await server.listen(address)
    try:
        yield
    finally:
        await server.close()


def measured(export: Export) -> Measured:
    """Return what an export was asked for, with the labels that tell it apart."""
    labels = {"export": export.id, "node": export.handle.node.name, "type": export.type}
    return Measured("export", labels, export.statistics)


def _response(status: str, fields: str = "", body: bytes = b"", *, head_only: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if head_only else body)


def _listener(address: str) -> socket.socket:
    """Return a listening socket; one on a path is the user's alone."""
    if address.startswith(_UNIX):
        path = address.removeprefix(_UNIX)
        if not path:
            raise OptionError("--metrics: unix: needs the path of a socket")
        listener = socket.socket(socket.AF_UNIX)
        where: str | tuple[str, int] = path
    else:
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        host = "127.0.0.1" if host in ("", "localhost") else host
        listener = socket.socket(_loopback_family(host, address))
        if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            listener.close()
            raise OptionError(f"--metrics '{address}': '{port}' is not the number of a port")
        where = (host, int(port))
    try:
        if isinstance(where, str):
            os.fchmod(listener.fileno(), 0o600)
            with suppress(OSError):
                if stat.S_ISSOCK(os.stat(where).st_mode):
                    os.unlink(where)  # left by one who was killed
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise StorageError(error.errno or 0, f"Failed to listen on '{address}': {error.strerror}") from error
    return listener


def _loopback_family(host: str, address: str) -> socket.AddressFamily:
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise OptionError(f"--metrics '{address}': '{host}' is no address of a host") from None
    if not parsed.is_loopback:
        raise OptionError(
            f"--metrics '{address}': metrics are told on loopback addresses and unix sockets alone"
        )
    return socket.AF_INET if parsed.version == 4 else socket.AF_INET6
