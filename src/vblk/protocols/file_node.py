"""Local files as leaves: reading, writing and stable storage on one descriptor.

Owns: `FileNode`, the path of every request to the engine, and the change between
reading only and writing. How files are found and opened stands in `file`,
what the storage can do with its space in `file_space`, the locks against other
programs in `image_lock`. It knows no format.

Ordering rule: a flush covers every write that had returned when it was asked
for. With O_DIRECT no write may change the block that another one is padding;
the aligner sees to that.
"""

import errno
import mmap
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from vblk.aio.buffers import AlignedBuffers
from vblk.aio.engine import Engine, storage_error
from vblk.aio.file_calls import open_again
from vblk.aio.inline import InlineReader, InlineWriter
from vblk.errors import BlockError, StorageError, Unsupported
from vblk.graph.alignment import Aligner, whole_blocks
from vblk.graph.edge import WRITING, Permission
from vblk.graph.node import Buffer, Leaf, Preallocation, Span
from vblk.protocols.cache_mode import CacheMode
from vblk.protocols.data_runs import spans_of
from vblk.protocols.file_space import Space
from vblk.protocols.image_lock import ImageLock
from vblk.runtime.flush_sequencer import FlushSequencer
from vblk.units import KIB, MIB, align_up

T = TypeVar("T")

_SECTOR = 512
_ZEROS = memoryview(mmap.mmap(-1, MIB, access=mmap.ACCESS_READ))
"""Zeros that begin on a memory page, as direct I/O wants them."""
_CHANGING = Permission.WRITE | Permission.WRITE_UNCHANGED | Permission.RESIZE

FIRST_BLOCK = 4 * KIB
"""So much of a file that was empty is written, so that O_DIRECT finds out what alignment it wants."""

_PREALLOCATING = {
    Preallocation.OFF: "Could not write the first block",
    Preallocation.FALLOC: "Could not preallocate new data",
    Preallocation.FULL: "Could not write zeros for preallocation",
}


class FileNode(Leaf):
    """A regular file.

    Its size is the file's at opening, and follows what is done through this
    node; growth by others is seen at the next `reopen`. Reads may reach to the
    end of the last 512-byte sector and find zeros there.

    Concurrency: belongs to one event loop's thread, with any number of requests
    in flight; overlapping writes in flight leave either's bytes.
    """

    driver: ClassVar[str] = "file"

    def __init__(
        self,
        name: str,
        filename: str,
        *,
        read_only: bool,
        engine: Engine,
        fd: int,
        space: Space,
        lock: ImageLock | None,
        permissions: Permission,
        shared: Permission,
        cache: CacheMode,
        size: int,
        alignment: int = 1,
        discard: bool = True,
    ) -> None:
        """Take over `fd` and `lock`; use `open_file` rather than this.

        `size` is in bytes; `alignment` is what direct I/O demands, 1 without;
        without `discard` space is never given back.
        """
        super().__init__(name, filename, read_only=read_only)
        self.cache = cache
        self.alignment = alignment
        self.engine = engine
        self.space = space
        self._fd = fd
        self._lock = lock
        self._permissions = permissions
        self._shared = shared
        self._size = size
        self._may_unmap = discard
        self._dirty = False
        self._inline = self._new_inline()
        self._inline_writer = self._new_inline_writer()
        self._flusher = FlushSequencer(self._flush_once, filename=filename)
        self._aligner = Aligner(_Direct(self), alignment, buffers=AlignedBuffers()) if cache.direct else None

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return self._size

    def descriptor(self) -> int | None:
        """Return the descriptor, the same as long as the node lives; None with O_DIRECT."""
        return None if self._aligner is not None else self._fd

    def cached_descriptor(self, offset: int, length: int) -> int | None:
        """Return the descriptor where the page cache has all of a range; see `Leaf.cached_descriptor`."""
        return self._fd if self._inline.has(offset, length) else None

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read from the page cache, or return None."""
        read_mapped = self._inline.read_mapped
        if read_mapped is not None:
            data = read_mapped(offset, length)
            if data is not None:
                return data
        return self._inline.try_read(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """Read bytes; see `Node.read`."""
        self._flusher.check_healthy()
        if self._aligner is not None:
            buffer = bytearray(length)
            await self.read_into(offset, memoryview(buffer))
            return bytes(buffer)
        data = await self.named(self.engine.read(self._fd, offset, length))
        if len(data) < length:
            self._check_end(offset, length, len(data))
            data += bytes(length - len(data))
        return data

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; see `Node.read_into`."""
        self._flusher.check_healthy()
        if self._aligner is not None:
            self._check_reach(offset, len(buffer), max(0, self._size - offset))
            await self.named(self._aligner.read_into(offset, buffer))
            return
        count = await self.named(self.engine.read_into(self._fd, offset, buffer))
        if count < len(buffer):
            self._check_end(offset, len(buffer), count)
            buffer[count:] = bytes(len(buffer) - count)

    def _check_end(self, offset: int, length: int, count: int) -> None:
        """Let zeros stand for what is missing only in the rest of the last sector."""
        self._check_reach(offset, length, count)
        self._check_length(offset, length, count)

    def _check_reach(self, offset: int, length: int, count: int) -> None:
        """Refuse a read that reaches beyond the last sector."""
        if offset + length > align_up(self._size, max(_SECTOR, self.alignment)):
            raise self._shorter(offset, length, count)

    def _check_length(self, offset: int, length: int, count: int) -> None:
        """Refuse a short read that ends before the file should."""
        if offset + count < self._size:
            raise self._shorter(offset, length, count)

    def _shorter(self, offset: int, length: int, count: int) -> StorageError:
        return StorageError(
            errno.EIO,
            f"the file ends at {offset + count} and was {self._size} bytes long",
            filename=self.filename,
            operation="read",
            offset=offset,
            length=length,
        )

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write to the page cache, or return False; see `Node.try_write`."""
        if self.read_only:
            self.require_writable()
        self._flusher.check_healthy()
        self._dirty = True
        if not self._inline_writer.try_write(offset, data):
            return False
        end = offset + len(data)
        if end > self._size:
            self._size = end
        return True

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write bytes, growing the file where they pass its end; see `Node.write`."""
        length = memoryview(data).nbytes
        self._begin_write()
        if self._aligner is not None:
            await self.named(self._aligner.write(offset, data))
        else:
            await self.named(self.engine.write(self._fd, offset, data))
        self.written(offset, length)
        if fua and not self.cache.write_through:  # O_DSYNC has done it already
            await self.flush()

    def written(self, offset: int, length: int) -> None:
        """Note bytes that arrived at the descriptor."""
        self._dirty = True
        self._size = max(self._size, offset + length)

    def _begin_write(self) -> None:
        self.require_writable()
        self._flusher.check_healthy()
        self._dirty = True

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Make a range zeros, in the file system's or device's way where it has one."""
        self._begin_write()

        async def zero(start: int, count: int) -> None:
            await self._zero(start, count, unmap=unmap and self._may_unmap, no_fallback=no_fallback)

        if self._aligner is not None:
            await self.named(self._aligner.write_zeroes(offset, length, zero))
        else:
            start, whole = whole_blocks(offset, length, self.space.sector_size)
            if whole:
                await self._write_zeros_out(offset, start - offset)
                await zero(start, whole)
                await self._write_zeros_out(start + whole, offset + length - start - whole)
            else:
                await self._write_zeros_out(offset, length)
        self.written(offset, length)
        if fua or self.cache.write_through:
            await self.flush()

    async def _zero(self, offset: int, length: int, *, unmap: bool, no_fallback: bool) -> None:
        end = offset + length
        while offset < end:
            step = min(end - offset, self.space.zero_step_max)
            done = await self.blocking(
                partial(self.space.try_zero, offset, step, unmap=unmap, cheap_only=no_fallback),
                "write-zeroes",
            )
            if not done and no_fallback:
                raise Unsupported("Operation not supported", filename=self.filename, operation="write-zeroes")
            if not done:
                await self._write_zeros_out(offset, step)
            offset += step

    async def _write_zeros_out(self, offset: int, length: int) -> None:
        """Write `length` zeros at `offset`; whole blocks only, where the node is direct."""
        for position in range(offset, offset + length, len(_ZEROS)):
            piece = _ZEROS[: offset + length - position]
            await self.named(self.engine.write(self._fd, position, piece))

    async def discard(self, offset: int, length: int) -> None:
        """Give space back where the storage can; otherwise nothing happens."""
        self._begin_write()
        if not self._may_unmap:
            return
        end = min(offset + length, self._size)
        unit = max(self.alignment, self.space.sector_size)
        offset, whole = whole_blocks(offset, max(0, end - offset), unit)
        end = offset + whole
        while offset < end:
            step = min(end - offset, self.space.zero_step_max)
            if not await self.blocking(partial(self.space.try_discard, offset, step), "discard"):
                return
            offset += step
        if self.cache.write_through:
            await self.flush()

    async def flush(self) -> None:
        """Reach stable storage, sharing the work with others who flush; see `Node.flush`."""
        self._flusher.check_healthy()
        if self.read_only or self.cache.no_flush:
            return
        await self._flusher.flush()

    async def _flush_once(self) -> None:
        self._dirty = False
        if not self.space.can_flush:
            return
        try:
            await self.named(self.engine.flush(self._fd))
        except BlockError:
            self._inline.close()  # a poisoned node answers nothing, not even from the cache
            raise

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Tell data from holes; what is past the end of the file is a hole."""
        return await spans_of(
            self, offset, length, lambda at, end: self.blocking(partial(self.space.segments, at, end), "map")
        )

    async def allocated_bytes(self) -> int | None:
        """Return the bytes that the file takes on its file system."""
        return await self.blocking(self.space.allocated, "stat")

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the file's length; see `Node.resize`."""
        self._begin_write()
        await self._change_size(size, preallocation, exact)
        if self.cache.write_through:
            await self.flush()

    async def _change_size(self, size: int, preallocation: Preallocation, exact: bool) -> None:
        """Truncate or grow; a growth that fails half-way is taken back."""
        before = self._size
        if preallocation is Preallocation.METADATA:
            raise Unsupported("Unsupported preallocation mode: metadata", filename=self.filename)
        if preallocation is not Preallocation.OFF and size < before:
            raise Unsupported("Cannot use preallocation for shrinking files", filename=self.filename)
        await self.blocking(lambda: os.ftruncate(self._fd, size), "resize")
        self._size = size
        if size <= before:
            return
        try:
            if preallocation is Preallocation.FALLOC:
                await self.blocking(lambda: os.posix_fallocate(self._fd, before, size - before), "resize")
            elif preallocation is Preallocation.FULL:
                await self._fill(before, size - before)
            elif not before:
                await self._fill(0, min(FIRST_BLOCK, size))
        except BaseException as error:
            os.ftruncate(self._fd, before)
            self._size = before
            if isinstance(error, BlockError):
                error.message = f"{_PREALLOCATING[preallocation]}: {error.message}"
            raise

    async def _fill(self, offset: int, length: int) -> None:
        """Write zeros, so that space is allocated."""
        if self._aligner is not None:
            await self._aligner.write_zeroes(offset, length, self._write_zeros_out)
        else:
            await self._write_zeros_out(offset, length)

    async def reopen(self, *, read_only: bool) -> None:
        """Change the access, and take note of the file's present length.

        Raises:
            ImageLocked: Somebody else forbids writing.
            StorageError: The system does.

        Nothing may be in flight. On failure everything is as before.
        """
        if read_only and not self.read_only:
            await self.flush()
        self._inline.close()  # a lease of our own would hold back our own opening
        permissions = self._permissions & ~_CHANGING if read_only else self._permissions | WRITING
        before = self._permissions
        try:
            await self._change_lock(permissions | before)
            try:
                size = await self.blocking(lambda: self._replace_descriptor(read_only), "reopen")
            except BlockError:
                await self._change_lock(before)
                raise
            await self._change_lock(permissions)
            self._permissions = permissions
            self.read_only = read_only
            self._size = size
        finally:
            self._inline = self._new_inline()
            self._inline_writer = self._new_inline_writer()

    def _new_inline(self) -> InlineReader:
        """Return a reader of the page cache, which O_DIRECT goes without."""
        inline = InlineReader(self._fd, may_map=self.read_only and self._lock is not None)
        if self.cache.direct:
            inline.close()
        return inline

    def _new_inline_writer(self) -> InlineWriter:
        """Return a writer to the page cache, for cache modes in which a write ends there."""
        inline = InlineWriter(self._fd, may_wait=self.space.writes_fill_memory)
        if self.cache.direct or self.cache.write_through:
            inline.close()
        return inline

    def _replace_descriptor(self, read_only: bool) -> int:
        """Open the same file anew under the same number, and return its length. Blocks."""
        fd = open_again(self._fd, self.filename, open_flags(read_only, self.cache))
        try:
            os.dup2(fd, self._fd, inheritable=False)
        finally:
            os.close(fd)
        return self.space.size()

    async def _change_lock(self, permissions: Permission) -> None:
        lock, shared = self._lock, self._shared
        if lock is not None:
            await self.blocking(lambda: lock.change(permissions, shared), "lock")

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to a file."""
        return {}

    async def close(self) -> None:
        """Bring what was written to stable storage, then release file and locks. Idempotent."""
        if self._fd < 0:
            return
        try:
            if self._dirty and not self._flusher.failed:
                await self.flush()
            await self._flusher.drain()
        finally:
            self._inline.close()
            self._inline_writer.close()
            fd, self._fd = self._fd, -1
            os.close(fd)
            if self._lock is not None:
                self._lock.close()

    async def named(self, request: Awaitable[T]) -> T:
        """Await a request and give its errors the file's name."""
        try:
            return await request
        except BlockError as error:
            if error.filename is None:
                error.filename = self.filename
            raise

    async def blocking(self, call: Callable[[], T], operation: str) -> T:
        """Run a blocking call on a worker; its errors get the file's name."""
        try:
            return await self.engine.run(call)
        except OSError as error:
            raise storage_error(error, filename=self.filename, operation=operation) from error


def open_flags(read_only: bool, cache: CacheMode) -> int:
    """Return the flags of open(2) for an access and a cache mode."""
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    if cache.direct:
        flags |= os.O_DIRECT
    if cache.write_through and not read_only:
        flags |= os.O_DSYNC
    return flags


class _Direct:
    """A file node's descriptor as the aligned storage beneath its aligner."""

    def __init__(self, node: FileNode) -> None:
        self._node = node

    @property
    def size(self) -> int:
        return self._node.size

    async def read_aligned(self, offset: int, buffer: memoryview) -> None:
        node = self._node
        count = await node.blocking(lambda: _read_direct(node._fd, offset, buffer, node.alignment), "read")
        if count < len(buffer):
            # The block that a write pads may lie beyond the end.
            node._check_length(offset, len(buffer), count)
            buffer[count:] = bytes(len(buffer) - count)

    async def write_aligned(self, offset: int, data: memoryview) -> None:
        node = self._node
        await node.engine.write(node._fd, offset, data)

    async def trim(self, size: int) -> None:
        node = self._node
        await node.blocking(lambda: os.ftruncate(node._fd, size), "write")
        node._size = size


def _read_direct(fd: int, offset: int, buffer: memoryview, alignment: int) -> int:
    """Fill an aligned buffer; stop at the end of the file, where a retry would be unaligned."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        done += count
        if count == 0 or done % alignment:
            break
    return done
