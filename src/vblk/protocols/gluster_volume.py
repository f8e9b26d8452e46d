"""A connection to one gluster volume, shared by all files that are open on it.

Owns: how the volume is found and left, and how the library's completions, which come
on threads of its own, reach the loop: each leaves its result in a queue and sets the
notifier. No thread waits for a request.

Ordering rules:
- A request is over for whoever waits when the library has let go of its memory, not before.
- A volume is left when its last file is closed, and closing a file has flushed it: so
  nobody waits for the library's farewell, which takes ten seconds.
"""

import asyncio
import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Final
from weakref import WeakKeyDictionary

from vblk.aio.engine import Engine, storage_error
from vblk.aio.notifier import create_notifier
from vblk.options.gluster import port_number
from vblk.protocols.gluster import Options, ServerOptions
from vblk.protocols.gluster_library import library
from vblk.runtime.uninterrupted import to_the_end

_SILENT: Final = "/dev/null"
_Key = tuple[object, ...]

_numbers: Final = count(1)


class Volume:
    """A volume, connected or about to be.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(self, key: _Key) -> None:
        """Prepare the connection; use `connected` rather than this."""
        self.key = key
        self.users = 0
        self.fs: Any = None
        """The library's own object, for calls that block; these run on workers."""
        self.opening: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        """Who waits for the requests under way."""
        self._completed: deque[tuple[int, int, int]] = deque()
        """Number, result and error of requests that are over."""
        self._notifier = create_notifier()
        self._notifier.attach(self._loop, self._collect)

    def connect(self, options: Options) -> None:
        """Find the volume and connect to all of its bricks; it blocks.

        Raises:
            StorageError: No server knows it.
        """
        gfapi = library()
        functions = gfapi.functions
        fs = functions.glfs_new(options.volume.encode())
        if fs == gfapi.ffi.NULL:
            gfapi.failed()
        try:
            for server in options.server:
                if functions.glfs_set_volfile_server(fs, *_address(server)):
                    gfapi.failed()
            if functions.glfs_set_logging(fs, (options.logfile or _SILENT).encode(), options.debug):
                gfapi.failed()
            if functions.glfs_init(fs):
                gfapi.failed()
        except OSError as error:
            _leave(fs)
            failure = storage_error(error)
            failure.message = _not_connected(options)
            raise failure from error
        self.fs = fs

    def completed(self, number: int, result: int, error: int) -> None:
        """Note on a thread of the library's that a request is over."""
        self._completed.append((number, result, error))
        self._notifier.set()

    def _collect(self) -> None:
        while self._completed:
            number, result, error = self._completed.popleft()
            future = self._waiting.pop(number)
            if future.done():
                continue
            if result < 0:
                future.set_exception(OSError(error, os.strerror(error)))
            else:
                future.set_result(result)

    async def request(self, begin: Callable[[Any, Any], int]) -> int:
        """Begin a request and return its result; `begin` gets what is called at the end, and with what.

        Cancellation: raised once the library has let go of the request's memory.

        Raises:
            OSError: It failed.
        """
        gfapi = library()
        number = next(_numbers)
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting[number] = future
        _under_way[number] = self
        if begin(_callback(), gfapi.ffi.cast("void *", number)):
            del self._waiting[number], _under_way[number]
            gfapi.failed()
        try:
            return await future
        except asyncio.CancelledError:
            if number in self._waiting:
                over: asyncio.Future[int] = self._loop.create_future()
                self._waiting[number] = over
                with suppress(OSError):
                    await to_the_end(over)
            raise

    def release(self) -> None:
        """Let go of the volume; the last one leaves it, and waits for nothing."""
        self.users -= 1
        if self.users:
            return
        _open[self._loop].pop(self.key, None)
        self._notifier.close()
        if self.fs is not None:
            threading.Thread(
                target=_leave, args=(self.fs,), name="leaving a gluster volume", daemon=True
            ).start()


_under_way: Final[dict[int, Volume]] = {}
"""Who waits for a request, by its number."""

_open: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, Volume]]] = WeakKeyDictionary()
"""The volumes that files are open on, by loop and by what they were connected with."""


@functools.cache
def _callback() -> Any:
    """Return what the library calls at the end of each request; it is never freed."""
    ffi = library().ffi

    def complete(fd: object, result: int, before: object, after: object, data: object) -> None:
        error = ffi.errno if result < 0 else 0
        number = int(ffi.cast("uintptr_t", data))
        _under_way.pop(number).completed(number, result, error)

    return ffi.callback("glfs_io_cbk", complete)


def _leave(fs: object) -> None:
    library().functions.glfs_fini(fs)


def _address(server: ServerOptions) -> tuple[bytes, bytes, int]:
    """Return transport, host and port as the library takes them; there is no rdma in it any more."""
    if server.type == "unix":
        return b"unix", (server.path or "").encode(), 0
    return b"tcp", (server.host or "").encode(), port_number(server.port or "0")


def _not_connected(options: Options) -> str:
    lines = [f"Gluster connection for volume {options.volume}, path {options.path} failed to connect"]
    for server in options.server:
        if server.type == "unix":
            lines.append(f"hint: failed on socket {server.path} ")
        else:
            lines.append(f"hint: failed on host {server.host} and port {port_number(server.port or '0')} ")
    return "\n".join(lines) + "Please refer to gluster logs for more info"


async def connected(options: Options, engine: Engine) -> Volume:
    """Return the volume, connected; whoever gets it releases it.

    Raises:
        StorageError: No server knows it.
        Unsupported: The library is not installed.
    """
    servers = tuple((server.type, server.host, server.port, server.path) for server in options.server)
    key: _Key = (options.volume, servers, options.debug, options.logfile)
    volumes = _open.setdefault(asyncio.get_running_loop(), {})
    volume = volumes.get(key)
    if volume is None:
        volume = volumes[key] = Volume(key)
        volume.opening = asyncio.ensure_future(engine.run(partial(volume.connect, options)))
    volume.users += 1
    assert volume.opening is not None
    try:
        await to_the_end(asyncio.shield(volume.opening))
    except BaseException:
        volume.release()
        raise
    return volume
