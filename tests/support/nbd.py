"""NBD servers for the tests: real ones, started on a socket that the test owns, and scripted ones.

Owns: how a server is started, killed and started again without a race. The test
listens itself and hands the socket over (socket activation), so that a client may
connect at any time: before the server is there, it waits.
"""

import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from vblk.protocols.nbd_link import PAUSE_FIRST, PAUSE_MOST

GREETING = b"NBDMAGIC"
OLDSTYLE = bytes.fromhex("0000420281861253")
SIMPLE = bytes.fromhex("67446698")
HAS_FLAGS, READ_ONLY, FLUSH, FUA, TRIM, ZEROES, FAST_ZERO = 1, 2, 4, 8, 32, 64, 2048
READ, WRITE, DISC, FLUSHING, TRIMMING, ZEROING = 0, 1, 2, 3, 4, 6


class Server:
    """A server program on a unix socket in the folder of the test, or on a free port of this host."""

    def __init__(self, folder: Path, *command: str, tcp: bool = False) -> None:
        self.path = folder / f"{len(os.listdir(folder))}.sock"
        self.command = command
        self._socket = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        self._socket.bind(("127.0.0.1", 0) if tcp else str(self.path))
        self._socket.listen(64)
        self.port: int = self._socket.getsockname()[1] if tcp else 0
        self._process: subprocess.Popen[bytes] | None = None

    def uri(self, export: str = "") -> str:
        return f"nbd+unix:///{export}?socket={self.path}"

    def start(self) -> None:
        number = self._socket.fileno()
        launch = 'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", launch, str(number), *self.command], pass_fds=(number,), stderr=subprocess.DEVNULL
        )

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def end(self, number: int | None) -> int:
        """Send a signal, or none, and return the exit status with which the server ends."""
        assert self._process is not None
        if number is not None:
            self._process.send_signal(number)
        status = self._process.wait()
        self._process = None
        self.__exit__(None, None, None)
        return status

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._socket.close()
        self.path.unlink(missing_ok=True)


def qemu_nbd(folder: Path, image: Path, *options: str, form: str = "raw") -> Server:
    """Return qemu-nbd with an image; it flushes to the image when it is asked to."""
    return Server(folder, "qemu-nbd", "-t", "-e", "16", "-f", form, "--discard=unmap", *options, str(image))


def nbdkit(folder: Path, plugin: str, *arguments: str, filters: Sequence[str] = ()) -> Server:
    """Return nbdkit with a plugin, its arguments, and filters over it."""
    over = [f"--filter={each}" for each in filters]
    return Server(folder, "nbdkit", "-f", "--exit-with-parent", *over, plugin, *arguments)


PAUSES = {min(PAUSE_FIRST * 2**doubled, PAUSE_MOST) for doubled in range(8)}


class VirtualClock:
    """A clock that moves when somebody pauses between attempts, and when the test says so.

    Alarms, which guard against silence, ring only by `advance`.
    """

    def __init__(self) -> None:
        self.time = 100.0
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, future))
        if seconds in PAUSES:
            await asyncio.sleep(0)
            self.advance(seconds)
        await future

    def advance(self, seconds: float) -> None:
        self.time += seconds
        for when, future in self._sleepers:
            if when <= self.time and not future.done():
                future.set_result(None)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(path: Path, *scripts: Script) -> AsyncGenerator[list[int]]:
    """Serve one script a connection, the last one for all that follow; yield the count of each."""
    counts = [0] * len(scripts)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = min(sum(counts), len(scripts) - 1)
        counts[number] += 1
        try:
            await scripts[number](reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(handle, str(path))
    try:
        yield counts
    finally:
        server.close()
        with suppress(FileNotFoundError):
            os.unlink(path)


def oldstyle(size: int, flags: int = HAS_FLAGS | FLUSH) -> bytes:
    """Return the whole handshake of the oldest servers."""
    return GREETING + OLDSTYLE + struct.pack(">QI124x", size, flags)


class Request(NamedTuple):
    """A request as a server sees it."""

    flags: int
    kind: int
    cookie: bytes
    offset: int
    length: int
    payload: bytes


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read a request with its payload."""
    header = await reader.readexactly(28)
    magic, flags, kind, cookie, offset, length = struct.unpack(">IHH8sQI", header)
    assert magic == 0x25609513
    payload = await reader.readexactly(length) if kind == 1 else b""
    return Request(flags, kind, cookie, offset, length, payload)


def simple(cookie: bytes, error: int = 0, payload: bytes = b"") -> bytes:
    """Return a simple reply."""
    return SIMPLE + struct.pack(">I", error) + cookie + payload


def answering(
    seen: list[Request],
    *,
    size: int = 1 << 20,
    flags: int = HAS_FLAGS | FLUSH,
    error: int = 0,
    most: int = 1 << 30,
) -> Script:
    """Return a server of zeros that notes its requests, answers `most` of them, and goes away."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(oldstyle(size, flags))
        for _ in range(most):
            request = await read_request(reader)
            seen.append(request)
            if request.kind == DISC:
                return
            payload = bytes(request.length) if request.kind == READ and not error else b""
            writer.write(simple(request.cookie, error, payload))
        seen.append(await read_request(reader))  # and give no answer

    return script
