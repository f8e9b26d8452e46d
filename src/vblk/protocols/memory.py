"""Disks in memory: sparse, and gone with the process.

Owns: a dictionary of pages. Absent pages are holes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.errors import OptionError, OutOfRange, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Buffer, Leaf, Preallocation, Span
from vblk.graph.site import Site
from vblk.options import Size, bind, check_children
from vblk.units import KIB, OFFSET_MAX

_PAGE = 64 * KIB
_HOLE = bytes(_PAGE)
_NO_SIZE = Size(0)


@dataclass(slots=True)
class Options:
    """`size` in bytes."""

    size: Size = _NO_SIZE


class MemoryNode(Leaf):
    """A disk in memory.

    Concurrency: every operation runs to completion at once, so overlapping
    requests are never torn.
    """

    driver: ClassVar[str] = "memory"

    def __init__(self, name: str, *, size: int, read_only: bool = False, data: bytes = b"") -> None:
        """Make a disk of `size` bytes that begins with `data` and continues with zeros."""
        super().__init__(name, "memory:", read_only=read_only)
        if not 0 <= size <= OFFSET_MAX or len(data) > size:
            raise OptionError(f"the size of a memory disk must be {len(data)} to {OFFSET_MAX}, not {size}")
        self._size = size
        self._pages: dict[int, bytearray] = {}
        if data:
            self._store(0, memoryview(data))

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self._size

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read bytes; it never waits."""
        index, start = divmod(offset, _PAGE)
        if start + length <= _PAGE:
            page = self._pages.get(index)
            return bytes(length) if page is None else bytes(page[start : start + length])
        buffer = bytearray(length)
        self._load(offset, memoryview(buffer))
        return bytes(buffer)

    async def read(self, offset: int, length: int) -> bytes:
        """Read bytes; see `Node.read`. What lies past the end is zeros."""
        buffer = bytearray(length)
        self._load(offset, memoryview(buffer))
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer; see `Node.read_into`."""
        self._load(offset, buffer)

    def _load(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            index, start = divmod(offset + done, _PAGE)
            count = min(_PAGE - start, len(buffer) - done)
            page = self._pages.get(index, _HOLE)
            buffer[done : done + count] = page[start : start + count]
            done += count

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write bytes, growing the disk where they pass its end; see `Node.write`."""
        self.require_writable()
        view = memoryview(data).cast("B")
        if offset + len(view) > OFFSET_MAX:
            raise OutOfRange("a disk cannot be that long", filename=self.filename, offset=offset)
        self._store(offset, view)
        self._size = max(self._size, offset + len(view))

    def _store(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            index, start = divmod(offset + done, _PAGE)
            count = min(_PAGE - start, len(data) - done)
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = bytearray(_PAGE)
            page[start : start + count] = data[done : done + count]
            done += count

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Zero a range; whole pages go. See `Node.write_zeroes`."""
        self.require_writable()
        self._clear(offset, length)
        self._size = max(self._size, offset + length)

    def _clear(self, offset: int, length: int) -> None:
        end = offset + length
        first, last = offset // _PAGE, (end - 1) // _PAGE if length else -1
        if last - first < len(self._pages):
            touched = [index for index in range(first, last + 1) if index in self._pages]
        else:
            touched = [index for index in self._pages if first <= index <= last]
        for index in touched:
            start, stop = max(offset - index * _PAGE, 0), min(end - index * _PAGE, _PAGE)
            if stop - start == _PAGE:
                del self._pages[index]
            else:
                self._pages[index][start:stop] = bytes(stop - start)

    async def discard(self, offset: int, length: int) -> None:
        """Zero a range; see `Node.discard`."""
        self.require_writable()
        self._clear(offset, min(length, max(0, self._size - offset)))

    async def flush(self) -> None:
        """Nothing is more stable than it was."""

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Tell pages from holes."""
        spans: list[Span] = []
        end = offset + length
        for index in sorted(
            index for index in self._pages if offset < (index + 1) * _PAGE and index * _PAGE < end
        ):
            start, stop = max(offset, index * _PAGE), min(end, (index + 1) * _PAGE)
            if start > offset:
                spans.append(Span(Kind.ZERO, offset, start - offset, self, offset))
            spans.append(Span(Kind.DATA, start, stop - start, self, start))
            offset = stop
        if offset < end:
            spans.append(Span(Kind.ZERO, offset, end - offset, self, offset))
        return spans

    async def allocated_bytes(self) -> int | None:
        """Return the bytes of all pages."""
        return len(self._pages) * _PAGE

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the length; memory cannot be preallocated."""
        self.require_writable()
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        if not 0 <= size <= OFFSET_MAX:
            raise OutOfRange(f"a disk cannot be {size} bytes long", filename=self.filename)
        if size < self._size:
            self._clear(size, self._size - size)
        self._size = size

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access."""
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to memory."""
        return {}

    async def close(self) -> None:
        """Forget everything. Idempotent."""
        self._pages.clear()


def open_memory(options: Options, *, name: str, read_only: bool) -> MemoryNode:
    """Make an empty disk in memory.

    Raises:
        OptionError: The size is no size.
    """
    return MemoryNode(name, size=options.size, read_only=read_only)


async def open_node(site: Site) -> MemoryNode:
    """Make the disk that the site's options describe.

    Raises:
        OptionError: They describe none.
    """
    check_children(site.options, "memory")
    node = open_memory(bind(site.options.own, Options, "memory"), name=site.name, read_only=site.read_only)
    site.graph.add(node)
    return node
