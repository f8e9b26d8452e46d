"""Reading once from the backing: what was read becomes the image's own.

Owns: which parts of a read have to be written into the child, and the locks that
keep an old copy from overwriting a newer write. It knows no format.

Ordering rule: from the look at a range to the end of its copy nobody writes to
that range.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.errors import GraphError, ReadOnly
from vblk.extent import Kind
from vblk.filters.events import Event, find_listener
from vblk.graph.edge import Access, Permission, Role
from vblk.graph.node import Buffer, Filter, Node, Preallocation, Span, coalesce
from vblk.graph.registry import Graph
from vblk.graph.site import Site
from vblk.options import bind, check_children
from vblk.runtime.range_lock import RangeLock
from vblk.units import MIB

COPY_MAX = MIB
"""The most bytes that are copied with one write."""


@dataclass(slots=True)
class Options:
    """There are none."""


class CopyOnReadNode(Filter):
    """A node whose reads leave a copy in its child.

    Concurrency: any number of requests. A copy waits for the writes to its range
    and holds new ones back; reads of what is there already wait for nothing.
    """

    driver: ClassVar[str] = "copy-on-read"
    own_access = Access(Permission.WRITE_UNCHANGED, Permission.ALL & ~(Permission.WRITE | Permission.RESIZE))
    """A write that passes it by could be overwritten with what was read before."""

    def __init__(self, name: str, filename: str, *, file: Node) -> None:
        super().__init__(name, filename, read_only=False, file=file)
        self._locks = RangeLock()

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Never answer at once: what is the child's own has to be looked up."""
        return None

    async def read(self, offset: int, length: int) -> bytes:
        """Read, and copy what the child did not hold."""
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read into a buffer piece by piece, and copy what the child did not hold."""
        for span in await self._spans(offset, len(buffer)):
            first = span.guest_offset - offset
            piece = buffer[first : first + span.length]
            if not _is_foreign(span):
                await self._file.read_into(span.guest_offset, piece)
                continue
            for start in range(0, span.length, COPY_MAX):
                await self._copy(span.guest_offset + start, piece[start : start + COPY_MAX])

    async def _spans(self, offset: int, length: int) -> list[Span]:
        return coalesce(await self._file.allocation(offset, length)) if length else []

    async def _copy(self, offset: int, buffer: memoryview) -> None:
        """Read a range, and write what is still not the child's own."""
        async with self._locks.exclusive(offset, len(buffer)):
            for span in await self._spans(offset, len(buffer)):
                first = span.guest_offset - offset
                piece = buffer[first : first + span.length]
                await self._file.read_into(span.guest_offset, piece)
                if not _is_foreign(span):
                    continue
                listener = find_listener(self._file)
                if listener is not None:
                    await listener.happened(Event.COR_WRITE)
                if span.kind is Kind.ZERO or piece.tobytes().count(0) == len(piece):
                    await self._file.write_zeroes(span.guest_offset, span.length)
                else:
                    await self._file.write(span.guest_offset, piece)

    @asynccontextmanager
    async def _writing(self, offset: int, length: int) -> AsyncGenerator[None]:
        if not length:
            yield
            return
        async with self._locks.shared(offset, length):
            yield

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write to the child, after copies of the range."""
        async with self._writing(offset, memoryview(data).nbytes):
            await self._file.write(offset, data, fua=fua)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros to the child, after copies of the range."""
        async with self._writing(offset, length):
            await self._file.write_zeroes(offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua)

    async def discard(self, offset: int, length: int) -> None:
        """Discard in the child, after copies of the range."""
        async with self._writing(offset, length):
            await self._file.discard(offset, length)

    async def flush(self) -> None:
        """Flush the child."""
        await self._file.flush()

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Say what the child's own is; the bytes are to be had here, so that they are copied."""
        return self._opaque(await self._file.resolve(offset, length))

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """As `resolve`, with the holes of the storage."""
        return self._opaque(await self._file.allocation(offset, length))

    def _opaque(self, spans: list[Span]) -> list[Span]:
        for span in spans:
            if span.kind is Kind.DATA:
                span.leaf, span.leaf_offset = self, span.guest_offset
        return spans

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Resize the child."""
        await self._file.resize(size, preallocation=preallocation, exact=exact)

    async def reopen(self, *, read_only: bool) -> None:
        """Refuse to become read-only: every read may write.

        Raises:
            GraphError: On every change of the access.
        """
        if read_only:
            raise GraphError("Can't use copy-on-read on read-only device", filename=self.filename)

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to this filter."""
        return {}

    async def close(self) -> None:
        """There is nothing to release."""


def _is_foreign(span: Span) -> bool:
    """Tell whether the child itself says nothing about a range."""
    return span.depth > 0 or not span.present


def _refuse_read_only() -> GraphError:
    return GraphError("Can't use copy-on-read on read-only device")


async def put_over(graph: Graph, file: Node) -> CopyOnReadNode:
    """Put the filter on a node that has no user yet; it closes with the filter.

    Raises:
        GraphError: The node is read-only.
    """
    if file.read_only:
        raise _refuse_read_only()
    node = CopyOnReadNode(graph.unique_name(), file.filename, file=file)
    graph.add(node)
    graph.attach(node, Role.FILTERED, file)
    return node


async def open_node(site: Site) -> CopyOnReadNode:
    """Open the node under the key `file` and put the filter on it."""
    check_children(site.options, "copy-on-read", "file")
    bind(site.options.own, Options, "copy-on-read")
    if site.read_only:
        raise ReadOnly("Block node is read-only")
    file = await site.child()
    node = CopyOnReadNode(site.name, site.filename, file=file)
    await site.take(node, file, "file", Role.FILTERED)
    return node
