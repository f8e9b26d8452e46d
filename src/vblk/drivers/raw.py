"""The raw format: the disk as it is, or a window of it.

Owns: the window (`offset`, `size`) and the rule that a guest cannot turn a
probed raw image into another format by writing a header to its first sector.
"""

import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from vblk.errors import CorruptImage, Misaligned, OptionError, OutOfRange, Reason, StorageError, Unsupported
from vblk.extent import Extent, Kind, Missing
from vblk.formats.probe import probe
from vblk.graph.mapper import Mapper
from vblk.graph.node import Buffer, Node, Preallocation, Span
from vblk.graph.site import Site
from vblk.options import bind, check_children
from vblk.units import FileOffset, GuestOffset, align_up

SECTOR = 512
"""Disks are whole sectors long: a file of an odd length reads as zeros in its last one."""


@dataclass(slots=True)
class Options:
    """`offset` and `size` in bytes: the window of the file that is the disk."""

    offset: int = 0
    size: int | None = None


class RawNode(Mapper):
    """A node whose guest offsets are its file's offsets, less the window's start."""

    driver = "raw"

    def __init__(
        self, name: str, filename: str, *, read_only: bool, file: Node, options: Options, probed: bool = False
    ) -> None:
        super().__init__(name, filename, read_only=read_only, file=file)
        self._offset = options.offset
        self._limit = options.size
        self._probed = probed
        self.alignment = file.alignment
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

    @property
    def size(self) -> int:
        """The window's length in bytes, whole sectors."""
        if self._limit is not None:
            return self._limit
        return align_up(max(0, self._file.size - self._offset), SECTOR)

    def lookup(self, offset: int, length: int) -> list[Extent] | Missing:
        """Answer with the same bytes of the window."""
        return [Extent(Kind.DATA, GuestOffset(offset), length, FileOffset(offset + self._offset))]

    def locate(self, offset: int, length: int) -> int | None:
        """Answer at once: a raw image is in one piece."""
        return offset + self._offset

    async def load(self, missing: Missing, pins: ExitStack) -> None:
        """Refuse: a raw image has no tables."""
        raise CorruptImage(Reason.BAD_VALUE, "a raw image has no tables", filename=self.filename)

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the window."""
        return await self._file.read(offset + self._offset, length)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the window."""
        await self._file.read_into(offset + self._offset, buffer)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write to the window."""
        self.require_writable()
        self._keep_raw(offset, data)
        await self._file.write(offset + self._offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros to the window."""
        self.require_writable()
        await self._file.write_zeroes(
            offset + self._offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua
        )

    async def discard(self, offset: int, length: int) -> None:
        """Discard in the window."""
        self.require_writable()
        await self._file.discard(offset + self._offset, length)

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncIterator[list[Span]]:
        """Answer with the window's own place; a probed image's first sector is kept back."""
        self.require_writable()
        if self._probed and offset < SECTOR:
            yield [Span(Kind.DATA, offset, length, self, offset)]
            return
        start = offset + self._offset
        async with self._file.place(start, length) as places:
            for place in places:
                place.guest_offset -= self._offset
            yield places

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the file's length, when the window reaches to its end."""
        self.require_writable()
        if self._limit is not None:
            raise Unsupported("Cannot resize fixed-size raw disks", filename=self.filename)
        if size > (1 << 63) - 1 - self._offset:
            raise OutOfRange("Disk size too large for the chosen offset", filename=self.filename)
        await self._file.resize(size + self._offset, preallocation=preallocation, exact=exact)

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access; the file follows by itself."""
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to raw."""
        return {}

    async def close(self) -> None:
        """Flush what was written."""
        if not self.read_only:
            await self._file.flush()

    def _keep_raw(self, offset: int, data: Buffer) -> None:
        """Refuse a write that would make a probed image look like another format."""
        if not self._probed or offset >= SECTOR:
            return
        if offset or memoryview(data).nbytes < SECTOR:
            raise Misaligned(
                "the format of this image was guessed: name it with -f raw to write part of its first sector",
                filename=self.filename,
                offset=offset,
            )
        found = probe(bytes(memoryview(data)[:SECTOR]), self.size)
        if found.format != "raw":
            raise StorageError(
                errno.EPERM,
                f"the format of this image was guessed as raw, and this write would make it {found.format}: "
                "name it with -f raw to allow it",
                filename=self.filename,
                offset=offset,
            )


async def open_node(site: Site) -> RawNode:
    """Open a raw image as the site's options say."""
    options = bind(site.options.own, Options, "raw")
    check_children(site.options, "raw", "file")
    file = await site.child()
    try:
        node = RawNode(
            site.name, site.filename, read_only=site.read_only, file=file, options=options, probed=site.probed
        )
    except BaseException:
        await site.graph.discard_unused(file)
        raise
    await site.take(node, file)
    return node
