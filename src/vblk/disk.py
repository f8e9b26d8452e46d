"""The public way to a disk: `vblk.open` and `vblk.open_file`.

Owns: the lifetime of a private graph around one image, and the synchronous
file-like view for libraries that expect a file. It moves no bytes itself.
"""

import asyncio
import errno
import io
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vblk.errors import BlockError, OptionError
from vblk.graph.edge import Role
from vblk.graph.gate import BesideGate, DenyGate
from vblk.graph.handle import Handle
from vblk.graph.node import Buffer, Node, Preallocation, Span, coalesce
from vblk.graph.objects import Objects
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules
from vblk.opening import open_image
from vblk.options import NodeOptions

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

ImageName = str | os.PathLike[str] | NodeOptions


class ReadCall(Protocol):
    """How `Disk.read` is called. It is the handle's own method: a hop less in every small read."""

    def __call__(self, offset: int, length: int) -> Coroutine[Any, Any, bytes]:
        """Return exactly `length` bytes from `offset`."""
        ...


class WriteCall(Protocol):
    """How `Disk.write` is called: the handle's own method, as with `ReadCall`."""

    def __call__(self, offset: int, data: Buffer, *, fua: bool = False) -> Coroutine[Any, Any, None]:
        """Write all of `data`; with `fua` it is on stable storage on return."""
        ...


class Disk:
    """An open image and its chain. Offsets and lengths are bytes, of any alignment.

    Raises (all requests):
        RequestError: This request failed; the disk is still good.
        ImageError: The image's tables are damaged here.
        NodeFailed: An earlier flush failed; only closing is possible.

    Concurrency: belongs to one event loop; any number of requests at a time.
    """

    read: "ReadCall"
    """Return exactly `length` bytes from `offset`: `await disk.read(offset, length)`."""

    write: "WriteCall"
    """Write all of `data`, with `fua` to stable storage: `await disk.write(offset, data)`."""

    def __init__(self, graph: Graph, handle: Handle) -> None:
        self.graph = graph
        self.handle = handle
        self.read = handle.read
        self.write = handle.write

    @property
    def node(self) -> Node:
        """The top node of the chain."""
        return self.handle.node

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self.handle.size

    @property
    def read_only(self) -> bool:
        """Whether the disk refuses writes."""
        return self.handle.read_only

    @property
    def format(self) -> str:
        """The name of the top image's format."""
        return self.node.driver

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Return the bytes if they are in memory, or None: then await `read`."""
        return self.handle.try_read(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> Coroutine[Any, Any, None]:
        """Fill a writable view of bytes from `offset`."""
        return self.handle.read_into(offset, buffer)

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write all of `data` if that needs no waiting, or return False: then await `write`."""
        return self.handle.try_write(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> Coroutine[Any, Any, None]:
        """Make a range read as zeros; with `unmap` its space may be given back."""
        return self.handle.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> Coroutine[Any, Any, None]:
        """Say that a range is of no more use."""
        return self.handle.discard(offset, length)

    def flush(self) -> Coroutine[Any, Any, None]:
        """Bring every finished write to stable storage."""
        return self.handle.flush()

    def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF
    ) -> Coroutine[Any, Any, None]:
        """Change the virtual size in bytes; new space reads as zeros."""
        return self.handle.resize(size, preallocation=preallocation)

    async def extents(self, offset: int = 0, length: int | None = None) -> list[Span]:
        """Say where a range is, through the chain, with holes of the storage as zeros.

        Returns: gapless spans in order; neighbours that continue each other are joined.
        """
        wanted = self.size - offset if length is None else length
        return coalesce(await self.handle.allocation(offset, wanted))

    def chain(self) -> list[Node]:
        """Return the images of the chain, the top first, the base last."""
        images: list[Node] = []
        node: Node | None = self.node
        while node is not None:
            images.append(node)
            node = node.child(Role.BACKING)
        return images

    def info(self) -> dict[str, Any]:
        """Return the facts of the top image: `filename`, `format`, `virtual-size` and its own."""
        return {
            "filename": self.node.filename,
            "format": self.node.driver,
            "virtual-size": self.size,
            "format-specific": dict(self.node.info()),
        }

    async def close(self) -> None:
        """Let go of the image; unfinished requests are waited for."""
        await self.graph.close()


class Opening:
    """What `vblk.open` returns: await it for a Disk, or use it in `async with`."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Disk]]) -> None:
        self._start = start
        self._disk: Disk | None = None

    def __await__(self) -> Generator[Any, None, Disk]:
        return self._start().__await__()

    async def __aenter__(self) -> Disk:
        self._disk = await self._start()
        return self._disk

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._disk is not None
        await self._disk.close()


def open(
    image: ImageName,
    *,
    format: str | None = None,
    read_only: bool = True,
    cache: str | None = None,
    force_share: bool = False,
    backing: bool = True,
    deny_implicit: bool = False,
    rules: ChainRules | None = None,
    secrets: Mapping[str, bytes] | None = None,
) -> Opening:
    """Open an image and its chain: `async with vblk.open("a.vhdx") as disk: ...`.

    Args:
        image: A path, `scheme://` URI, `json:{...}`, or typed options.
        format: The image's format; None probes for it.
        read_only: False opens for writing.
        cache: QEMU's cache modes: writeback, none, writethrough, directsync, unsafe.
        force_share: Open even though another process writes to the image.
        backing: False leaves the backing chain closed.
        deny_implicit: Refuse every file that the image names.
        rules: Where parents are looked for, and what is accepted as one.
        secrets: Passphrases, by the ids that options such as `key-secret` refer to.

    Raises (when entered or awaited):
        OptionError: The image is named in a way that cannot be right.
        ImageError: The image is damaged, or not of this format.
        StorageError: The file cannot be opened.
        PermissionConflict: Another process holds the image.
    """
    name = os.fspath(image) if isinstance(image, os.PathLike) else image

    async def start() -> Disk:
        gate = DenyGate() if deny_implicit else BesideGate()
        graph = Graph(gate=gate, objects=Objects(secrets))
        try:
            handle = await open_image(
                graph,
                name,
                format=format,
                read_only=read_only,
                cache=cache,
                force_share=force_share,
                backing=backing,
                rules=rules,
            )
        except BaseException:
            await graph.close()
            raise
        return Disk(graph, handle)

    return Opening(start)


class DiskFile(io.RawIOBase):
    """A disk as a file object: synchronous, seekable, for libraries that expect a file.

    It drives an event loop of its own on the calling thread, so it cannot be
    used on a thread whose loop is running: there, use `vblk.open`. Any thread
    may call; calls exclude each other.

    Raises: OSError with the number of the BlockError behind it, as files do;
    OptionError where an event loop is running.
    """

    def __init__(self, image: ImageName, **options: Any) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._position = 0
        self._open_disk: Disk | None = None
        _refuse_running_loop()
        # A factory of its own keeps the runner from touching the thread's current loop.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        try:
            self._open_disk = self._run(lambda: _awaited(open(image, **options)))
        except BaseException:
            self._runner.close()
            super().close()
            raise

    @property
    def disk(self) -> Disk:
        """The disk behind the file."""
        if self._open_disk is None:
            raise ValueError("I/O operation on closed file")
        return self._open_disk

    def _run(self, make_call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        _refuse_running_loop()
        return _with_os_errors(lambda: self._runner.run(make_call()))

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it has a position."""
        return True

    def writable(self) -> bool:
        """Tell whether the disk takes writes."""
        return self._open_disk is not None and not self._open_disk.read_only

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; it may stand past the end."""
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.disk.size}
        if whence not in bases:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill `buffer` from the position; fewer bytes only at the end of the disk."""
        view = memoryview(buffer).cast("B")
        with self._lock:
            disk, position = self.disk, self._position
            length = max(0, min(len(view), disk.size - position))
            data = _with_os_errors(lambda: disk.try_read(position, length)) if length else b""
            if data is None:
                self._run(lambda: disk.read_into(position, view[:length]))
            else:
                view[:length] = data
            self._position = position + length
        return length

    def write(self, data: Any) -> int:
        """Write at the position; a disk does not grow by being written to.

        Raises:
            OSError: ENOSPC at the end of the disk, as devices do it.
        """
        view = memoryview(data).cast("B")
        with self._lock:
            disk, position = self.disk, self._position
            length = max(0, min(len(view), disk.size - position))
            if view and not length:
                raise OSError(errno.ENOSPC, f"{disk.node.filename}: the disk ends at {disk.size} bytes")
            if not _with_os_errors(lambda: disk.try_write(position, view[:length])):
                self._run(lambda: disk.write(position, view[:length]))
            self._position = position + length
        return length

    def flush(self) -> None:
        """Bring every finished write to stable storage."""
        disk = self._open_disk
        if disk is not None and not disk.read_only:
            with self._lock:
                self._run(disk.flush)

    def close(self) -> None:
        """Let go of the image. Idempotent."""
        if self.closed:
            return
        _refuse_running_loop()
        try:
            super().close()
        finally:
            with self._lock:
                disk, self._open_disk = self._open_disk, None
                try:
                    if disk is not None:
                        self._run(disk.close)
                finally:
                    self._runner.close()


def open_file(image: ImageName, **options: Any) -> DiskFile:
    """Open an image as a synchronous file object; options as for `vblk.open`."""
    return DiskFile(image, **options)


def _refuse_running_loop() -> None:
    """Refuse to wait on a thread whose event loop is running: it would wait for itself.

    Raises:
        OptionError: A loop is running here.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise OptionError("a disk as a file cannot be used where an event loop is running: use vblk.open")


def _with_os_errors(call: Callable[[], T]) -> T:
    """Make a call whose BlockErrors become OSErrors, as a file's user expects."""
    try:
        return call()
    except BlockError as error:
        raise OSError(error.errno, str(error)) from error


async def _awaited(call: Awaitable[T]) -> T:
    return await call
