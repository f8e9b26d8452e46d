"""The raw format: the disk as it is, or a window of it.

Owns: the window (`offset`, `size`) and the rule that a guest cannot turn a
probed raw image into another format by writing a header to its first sector.
"""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from vblk.drivers.bitmaps_beside import BitmapsBeside
from vblk.errors import CorruptImage, OptionError, OutOfRange, Reason, StorageError, Unsupported
from vblk.extent import Extent, Kind, Missing
from vblk.formats.probe import probe
from vblk.graph.edge import Edge, Role
from vblk.graph.mapper import INLINE_MAX
from vblk.graph.node import Buffer, Node, Preallocation, Span
from vblk.graph.site import Site
from vblk.options import Size, bind, check_children
from vblk.units import OFFSET_MAX, FileOffset, GuestOffset, align_up

SECTOR = 512
"""Disks are whole sectors long: a file of an odd length reads as zeros in its last one."""


_START: Final = Size(0)


@dataclass(slots=True)
class Options:
    """`offset` and `size` in bytes: the window of the file that is the disk."""

    offset: Size = _START
    size: Size | None = None


class RawNode(BitmapsBeside):
    """A node whose guest offsets are its file's offsets, less the window's start.

    With its file it does what its own users do with it, as a filter does: nothing without them.
    """

    driver = "raw"
    has_tables = False

    def __init__(
        self, name: str, filename: str, *, read_only: bool, file: Node, options: Options, probed: bool = False
    ) -> None:
        super().__init__(name, filename, read_only=read_only, file=file)
        self._offset = options.offset
        self._limit = options.size
        self._probed = probed
        self._first_sector = asyncio.Lock()
        self._sizing = asyncio.Lock()
        self._closed = False
        self.alignment = max(file.alignment, SECTOR) if probed else file.alignment
        if self._offset < 0 or (self._limit is not None and self._limit < 0):
            raise OptionError("offset and size of a raw image cannot be negative", filename=filename)
        if self._offset > file.size:
            raise OptionError(
                f"Offset ({self._offset}) cannot be greater than size of the containing file ({file.size})",
                filename=filename,
            )
        if self._limit is not None and self._limit > file.size - self._offset:
            raise OptionError(
                f"The sum of offset ({self._offset}) and size ({self._limit}) has to be smaller or equal to "
                f"the actual size of the containing file ({file.size})",
                filename=filename,
            )
        if self._limit is not None and self._limit % SECTOR:
            raise OptionError("Specified size is not multiple of 512 bytes", filename=filename)

    def child_changed(self, edge: Edge) -> None:
        """Follow to another file; its alignment is the window's."""
        super().child_changed(edge)
        self.alignment = max(edge.node.alignment, SECTOR) if self._probed else edge.node.alignment

    @property
    def size(self) -> int:
        """The window's length in bytes, whole sectors."""
        if self._limit is not None:
            return self._limit
        return align_up(max(0, self._file.size - self._offset), SECTOR)

    def _inside(self, offset: int, length: int) -> int:
        """Return how much of a range the file has; the rest of an odd last sector is zeros."""
        return max(0, min(length, self._file.size - self._offset - offset))

    def lookup(self, offset: int, length: int) -> list[Extent] | Missing:
        """Answer with the same bytes of the window."""
        inside = self._inside(offset, length)
        extents: list[Extent] = []
        if inside:
            extents.append(Extent(Kind.DATA, GuestOffset(offset), inside, FileOffset(offset + self._offset)))
        if inside < length:
            extents.append(Extent(Kind.ZERO, GuestOffset(offset + inside), length - inside))
        return extents

    def locate(self, offset: int, length: int) -> int | None:
        """Answer at once: a raw image is in one piece."""
        return offset + self._offset if self._inside(offset, length) == length else None

    async def load(self, missing: Missing, pins: ExitStack) -> None:
        """Refuse: a raw image has no tables."""
        raise CorruptImage(Reason.BAD_VALUE, "a raw image has no tables", filename=self.filename)

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the window."""
        inside = self._inside(offset, length)
        if inside == length:
            return await self._file.read(offset + self._offset, length)
        data = await self._file.read(offset + self._offset, inside) if inside else b""
        return data + bytes(length - inside)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the window."""
        inside = self._inside(offset, len(buffer))
        if inside:
            await self._file.read_into(offset + self._offset, buffer[:inside])
        buffer[inside:] = bytes(len(buffer) - inside)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read from the window at once, in one step where the file has all of the range."""
        place = offset + self._offset
        if length <= INLINE_MAX and place + length <= self._file.size:
            return self._file.try_read(place, length)
        return super().try_read(offset, length)

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write to the window at once, except where something has to be looked at first."""
        if self.read_only:
            self.require_writable()
        place = offset + self._offset
        if (self._probed and offset < SECTOR) or place + len(data) > self._file.size:
            return False
        return self._file.try_write(place, data)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write to the window."""
        self.require_writable()
        await self._make_room(offset + len(data))
        async with self._kept_raw(offset, data):
            await self._file.write(offset + self._offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros to the window."""
        self.require_writable()
        await self._make_room(offset + length)
        async with self._kept_raw(offset, bytes(min(length, SECTOR))):
            await self._file.write_zeroes(
                offset + self._offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua
            )

    async def discard(self, offset: int, length: int) -> None:
        """Discard in the window; not in the first sector of a probed image, which might change its format."""
        self.require_writable()
        skipped = max(0, SECTOR - offset) if self._probed else 0
        inside = self._inside(offset + skipped, length - skipped)
        if inside:
            await self._file.discard(offset + skipped + self._offset, inside)

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Answer with the window's own place; a probed image's first sector is kept back."""
        self.require_writable()
        await self._make_room(offset + length)
        kept = min(length, max(0, SECTOR - offset)) if self._probed else 0
        spans = [Span(Kind.DATA, offset, kept, self, offset)] if kept else []
        if kept == length:
            yield spans
            return
        async with self._file.place(offset + kept + self._offset, length - kept) as places:
            for place in places:
                place.guest_offset -= self._offset
            yield spans + places

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the file's length, when the window reaches to its end."""
        self.require_writable()
        if self._limit is not None:
            raise Unsupported("Cannot resize fixed-size raw disks", filename=self.filename)
        if size > OFFSET_MAX - self._offset:
            raise OutOfRange("Disk size too large for the chosen offset", filename=self.filename)
        async with self._sizing:
            await self._file.resize(size + self._offset, preallocation=preallocation, exact=exact)

    async def _make_room(self, end: int) -> None:
        """Let the file have all of its odd last sector before something is written there."""
        if self._inside(0, end) == end:
            return
        async with self._sizing:
            if self._inside(0, end) < end:
                await self._file.resize(self._offset + self.size)

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access; the file follows by itself."""
        if read_only == self.read_only:
            return
        if read_only:
            await self._file.flush()
            await self._end_bitmaps()
        self.read_only = read_only
        if not read_only:
            await self._resume_bitmaps()

    def identity(self, status: os.stat_result) -> str:
        """Return what tells another file, or one that was written to since."""
        return f"inode {status.st_ino}, {status.st_size} bytes, modified {status.st_mtime_ns}"

    @property
    def has_bitmaps_beside(self) -> bool:
        """Whether the window is the whole file."""
        return not self._offset and self._limit is None

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to raw but what is kept beside it."""
        return self._kept_bitmaps()

    async def close(self) -> None:
        """Flush what was written, and store the bitmaps. Idempotent."""
        if not self._closed and not self.read_only:
            self._closed = True
            await self._file.flush()
            await self._end_bitmaps()

    @asynccontextmanager
    async def _kept_raw(self, offset: int, data: Buffer) -> AsyncGenerator[None, None]:
        """Refuse a write that would make a probed image look like another format.

        Whoever writes to the first sector is alone with it, from the look at
        what stands there to the end of the write.
        """
        if not self._probed or offset >= SECTOR or not len(data):
            yield
            return
        async with self._first_sector:
            head = bytearray(await self.read(0, min(SECTOR, self.size)))
            piece = memoryview(data)[: len(head) - offset]
            head[offset : offset + len(piece)] = piece
            found = probe(bytes(head), self.size)
            if found.format != "raw":
                raise StorageError(
                    errno.EPERM,
                    f"the format of this image was guessed as raw, and this write would make it "
                    f"{found.format}: name it with -f raw to allow it",
                    filename=self.filename,
                    operation="write",
                    offset=offset,
                )
            yield


async def open_node(site: Site) -> RawNode:
    """Open a raw image as the site's options say."""
    options = bind(site.options.own, Options, "raw")
    check_children(site.options, "raw", "file")
    file = await site.child()
    node = RawNode(
        site.name, site.filename, read_only=site.read_only, file=file, options=options, probed=site.probed
    )
    await site.take(node, file, role=Role.FILTERED)
    await node.begin_bitmaps(site.graph.engine)
    return node
