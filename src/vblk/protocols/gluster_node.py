"""Files on gluster volumes as leaves.

Owns: how the requests of a node become the library's: cut to pieces, many at a time,
and carried on where the answer is short. The connection is `gluster_volume`'s, its
options `gluster`'s.

Ordering rule: a flush covers every write that had returned when it was asked for: the
client side of a volume may hold written bytes back until then. Nothing changes the
file's length but `resize` and what is written or zeroed past its end.

Source: glfs.h of GlusterFS 10.
"""

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from vblk.aio.engine import Engine, storage_error
from vblk.errors import BlockError, OutOfRange, StorageError, Unsupported
from vblk.graph.node import Buffer, Preallocation, Span
from vblk.protocols.cache_mode import WRITEBACK, CacheMode
from vblk.protocols.data_runs import Runs, data_runs, spans_of
from vblk.protocols.gluster import Options
from vblk.protocols.gluster_library import library, status_of
from vblk.protocols.gluster_volume import Volume, connected
from vblk.protocols.remote_leaf import RemoteLeaf
from vblk.runtime.fan_out import in_pieces
from vblk.runtime.uninterrupted import to_the_end
from vblk.units import GIB, MIB, OFFSET_MAX

PAYLOAD_MAX: Final = MIB
"""The most bytes of one read or write."""

EFFECT_MAX: Final = GIB
"""The most bytes that one request without a payload is about."""

PIECES_AT_ONCE: Final = 16

_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_MODE: Final = 0o644

T = TypeVar("T")


class GlusterNode(RemoteLeaf):
    """A file on a gluster volume."""

    driver: ClassVar[str] = "gluster"

    def __init__(
        self,
        name: str,
        filename: str,
        *,
        read_only: bool,
        options: Options,
        engine: Engine,
        volume: Volume,
        fd: Any,
        size: int,
        cache: CacheMode = WRITEBACK,
    ) -> None:
        """Take over an open `fd` of `volume`; use `open_gluster` rather than this."""
        super().__init__(name, filename, read_only=read_only, cache=cache)
        if any(server.type == "rdma" for server in options.server):
            self.warnings.append("rdma feature is not supported, falling back to tcp")
        self._options = options
        self._engine = engine
        self._volume = volume
        self._fd = fd
        self._size = size
        self._can_zero = True
        self._can_discard = True

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self._size

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; see `Node.read_into`. What lies past the end is zeros."""
        self._flusher.check_healthy()
        inside = max(0, min(len(buffer), self._size - offset))
        buffer[inside:] = bytes(len(buffer) - inside)
        gfapi = library()

        async def piece(at: int, count: int) -> None:
            end = at + count
            while at < end:
                with gfapi.ffi.from_buffer(buffer[at:end]) as memory:
                    begin = partial(
                        gfapi.functions.glfs_pread_async, self._fd, memory, end - at, offset + at, 0
                    )
                    done = await self._call("read", offset + at, self._volume.request(begin))
                if not done:
                    raise StorageError(
                        errno.EIO,
                        "the file is shorter than it was",
                        filename=self.filename,
                        operation="read",
                        offset=offset + at,
                    )
                at += done

        if inside:
            await in_pieces(inside, PAYLOAD_MAX, piece, PIECES_AT_ONCE)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write bytes, growing the file where they pass its end; see `Node.write`."""
        self.require_writable()
        self._flusher.check_healthy()
        view = memoryview(data).cast("B")
        if view:
            await self._write(offset, view)
        if fua or self.cache.write_through:
            await self.flush()

    async def _write(self, offset: int, view: memoryview) -> None:
        self._check_reach(offset + len(view))
        self._dirty = True
        gfapi = library()

        async def piece(at: int, count: int) -> None:
            end = at + count
            while at < end:
                with gfapi.ffi.from_buffer(view[at:end]) as memory:
                    begin = partial(
                        gfapi.functions.glfs_pwrite_async, self._fd, memory, end - at, offset + at, 0
                    )
                    done = await self._call("write", offset + at, self._volume.request(begin))
                if not done:
                    raise StorageError(
                        errno.EIO,
                        "the volume takes no more bytes",
                        filename=self.filename,
                        operation="write",
                        offset=offset + at,
                    )
                at += done

        await in_pieces(len(view), PAYLOAD_MAX, piece, PIECES_AT_ONCE)
        self._size = max(self._size, offset + len(view))

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Have the bricks zero a range, or punch it out; see `Node.write_zeroes`."""
        self.require_writable()
        self._flusher.check_healthy()
        if no_fallback:
            raise Unsupported("a volume does not promise that zeroing is fast", filename=self.filename)
        self._check_reach(offset + length)
        inside = max(0, min(length, self._size - offset))
        if not (unmap and await self._punch(offset, inside)) and not await self._zero(offset, inside):
            zeros = memoryview(bytes(min(inside, PAYLOAD_MAX)))
            await in_pieces(
                inside,
                PAYLOAD_MAX,
                lambda at, count: self._write(offset + at, zeros[:count]),
                PIECES_AT_ONCE,
            )
        if inside < length:
            await self._write(offset + length - 1, memoryview(b"\0"))  # what lies before it is a hole
        if fua or self.cache.write_through:
            await self.flush()

    async def discard(self, offset: int, length: int) -> None:
        """Punch a hole into what lies within the file; see `Node.discard`."""
        self.require_writable()
        self._flusher.check_healthy()
        await self._punch(offset, max(0, min(length, self._size - offset)))

    async def _punch(self, offset: int, length: int) -> bool:
        """Give a range back, which is zeros then; return False if the volume cannot."""
        if self._can_discard:
            self._can_discard = await self._effect("discard", offset, length)
        return self._can_discard

    async def _zero(self, offset: int, length: int) -> bool:
        if self._can_zero:
            self._can_zero = await self._effect("zerofill", offset, length)
        return self._can_zero

    async def _effect(self, operation: str, offset: int, length: int) -> bool:
        """Carry out a request without a payload; return False if the volume cannot."""
        function = getattr(library().functions, f"glfs_{operation}_async")
        self._dirty = True
        try:
            await in_pieces(
                length,
                EFFECT_MAX,
                lambda at, count: self._call(
                    operation,
                    offset + at,
                    self._volume.request(partial(function, self._fd, offset + at, count)),
                ),
            )
        except StorageError as error:
            if error.errno not in _CANNOT:
                raise
            return False
        return True

    async def _flush_server(self) -> None:
        begin = partial(library().functions.glfs_fdatasync_async, self._fd)
        await self._call("flush", None, self._volume.request(begin))

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Ask the bricks for holes."""
        self._flusher.check_healthy()
        return await spans_of(
            self, offset, length, lambda at, end: self._blocking("map", partial(self._runs, at, end))
        )

    def _runs(self, offset: int, end: int) -> Runs:
        gfapi = library()

        def seek(start: int, whence: int) -> int:
            found = int(gfapi.functions.glfs_lseek(self._fd, start, whence))
            if found < 0:
                gfapi.failed()
            return found

        try:
            return data_runs(seek, offset, end)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return [(True, end)]

    async def allocated_bytes(self) -> int | None:
        """Return the bytes that the file takes on one brick that has it."""
        ask = partial(library().functions.glfs_fstat, self._fd)
        return (await self._blocking("stat", partial(status_of, ask))).allocated

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Set the length; see `Node.resize`."""
        self.require_writable()
        self._flusher.check_healthy()
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        if size < 0:
            raise OutOfRange(f"a file cannot be {size} bytes long", filename=self.filename)
        self._check_reach(size)
        self._dirty = True
        begin = partial(library().functions.glfs_ftruncate_async, self._fd, size)
        await self._call("resize", size, self._volume.request(begin))
        self._size = size

    async def reopen(self, *, read_only: bool) -> None:
        """Open the file anew with the new access."""
        if read_only == self.read_only:
            return
        if read_only:
            await self.flush()
        path = self._options.path
        fd = await self._blocking("open", partial(open_file, self._volume, path, read_only=read_only))
        before, self._fd, self.read_only = self._fd, fd, read_only
        await self._engine.run(partial(close_file, before))

    async def _leave(self) -> None:
        try:
            await to_the_end(self._engine.run(partial(close_file, self._fd)))
        finally:
            self._volume.release()

    def _check_reach(self, end: int) -> None:
        if end > OFFSET_MAX:
            raise OutOfRange("a file cannot be that long", filename=self.filename, offset=end)

    async def _blocking(self, operation: str, call: Callable[[], T]) -> T:
        return await self._call(operation, None, self._engine.run(call))

    async def _call(self, operation: str, offset: int | None, answer: Awaitable[T]) -> T:
        """Return the answer to a request, which is no error.

        Raises:
            StorageError: The volume refused, or its bricks are gone.
            NoSpace: They are full.
        """
        try:
            return await answer
        except OSError as error:
            raise storage_error(error, filename=self.filename, operation=operation, offset=offset) from error


def open_file(volume: Volume, path: str, *, read_only: bool, create: bool = False) -> Any:
    """Open a file of a volume; it blocks.

    Raises:
        OSError: There is none, or it may not be used so.
    """
    gfapi = library()
    flags = os.O_RDONLY if read_only else os.O_RDWR
    name = path.encode("utf-8", "surrogateescape")
    if create:
        fd = gfapi.functions.glfs_creat(volume.fs, name, flags | os.O_CREAT, _MODE)
    else:
        fd = gfapi.functions.glfs_open(volume.fs, name, flags)
    if fd == gfapi.ffi.NULL:
        gfapi.failed()
    return fd


def close_file(fd: Any) -> None:
    """Close a file, of which all that matters is flushed, even where its bricks are gone; it blocks."""
    library().functions.glfs_close(fd)


def _open_regular(volume: Volume, path: str, *, read_only: bool, create: bool) -> tuple[Any, int]:
    """Open what is a regular file, and return its length as well; it blocks."""
    fd = open_file(volume, path, read_only=read_only, create=create)
    try:
        status = status_of(partial(library().functions.glfs_fstat, fd))
        if stat.S_ISDIR(status.mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.mode):
            raise OSError(errno.EINVAL, "it is no regular file")
    except BaseException:
        close_file(fd)
        raise
    return fd, status.length


async def open_gluster(
    options: Options,
    engine: Engine,
    *,
    name: str,
    filename: str,
    read_only: bool,
    auto_read_only: bool = False,
    cache: CacheMode = WRITEBACK,
    create: bool = False,
) -> GlusterNode:
    """Connect to a volume and open a file there.

    Args:
        options: Where it is.
        engine: Where what blocks is done.
        name: The node's name.
        filename: What a user would type.
        read_only: Nothing is written.
        auto_read_only: Open for reading only where writing is forbidden.
        cache: How writes reach the medium.
        create: Make the file, if there is none.

    Raises:
        StorageError: There is no such server, volume or file, or it refuses.
        Unsupported: The library is not installed.

    An error of the opening names the volume and the path in its text.
    """
    volume = await connected(options, engine)
    try:
        opened = partial(_open_regular, volume, options.path)
        try:
            fd, size = await engine.run(partial(opened, read_only=read_only, create=create))
        except OSError as error:
            if read_only or not auto_read_only or error.errno not in (errno.EACCES, errno.EROFS):
                raise
            read_only = True
            fd, size = await engine.run(partial(opened, read_only=True, create=False))
    except BaseException as error:
        volume.release()
        if isinstance(error, OSError):
            raise _not_opened(options, error) from error
        raise
    return GlusterNode(
        name,
        filename,
        read_only=read_only,
        options=options,
        engine=engine,
        volume=volume,
        fd=fd,
        size=size,
        cache=cache,
    )


def _not_opened(options: Options, error: OSError) -> BlockError:
    failure = storage_error(error)
    failure.message = f"failed to open '{options.path}' on volume '{options.volume}': {error.strerror}"
    return failure
