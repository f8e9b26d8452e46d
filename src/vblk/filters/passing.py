"""A filter that changes nothing, for those who want to change one thing.

Owns: the way through. Subclasses decide where a request stops or bends: each
overrides `before` and `after`, or the one operation that it is about. Others see
through it which ranges are zeros, and how deep the others are; every byte passes it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from vblk.extent import Kind
from vblk.graph.edge import Role
from vblk.graph.node import Buffer, Filter, Node, Preallocation, Span, coalesce
from vblk.graph.registry import Graph


class PassingNode(Filter):
    """A node over `file` that passes every request on, between `before` and `after`."""

    driver: ClassVar[str] = "passing"

    def __init__(
        self, name: str, file: Node, *, filename: str | None = None, read_only: bool | None = None
    ) -> None:
        """Stand over `file`; use `put_over` to become its user in a graph."""
        super().__init__(
            name,
            file.filename if filename is None else filename,
            read_only=file.read_only if read_only is None else read_only,
            file=file,
        )

    def put_over(self, graph: Graph) -> None:
        """Join the graph and take `file`, which is in it, as the child."""
        graph.add(self)
        graph.attach(self, Role.FILTERED, self.file, "file")

    async def before(self, operation: str, offset: int, length: int) -> None:
        """Do nothing before an operation; offset and length are 0 where it has none."""

    async def after(self, operation: str, offset: int, length: int) -> None:
        """Do nothing after an operation that succeeded."""

    @property
    def file(self) -> Node:
        """The node below."""
        return self._file

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read without waiting, or return None."""
        return self.file.try_read(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the child."""
        await self.before("read", offset, length)
        data = await self.file.read(offset, length)
        await self.after("read", offset, length)
        return data

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the child."""
        await self.before("read", offset, len(buffer))
        await self.file.read_into(offset, buffer)
        await self.after("read", offset, len(buffer))

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write to the child."""
        self.require_writable()
        await self.before("write", offset, len(data))
        await self.file.write(offset, data, fua=fua)
        await self.after("write", offset, len(data))

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros to the child."""
        self.require_writable()
        await self.before("write-zeroes", offset, length)
        await self.file.write_zeroes(offset, length, unmap=unmap, no_fallback=no_fallback, fua=fua)
        await self.after("write-zeroes", offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Discard in the child."""
        self.require_writable()
        await self.before("discard", offset, length)
        await self.file.discard(offset, length)
        await self.after("discard", offset, length)

    async def flush(self) -> None:
        """Flush the child."""
        await self.before("flush", 0, 0)
        await self.file.flush()
        await self.after("flush", 0, 0)

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Say what is zeros and how deep the rest is; the bytes are to be had here."""
        return coalesce([self._own(span) for span in await self.file.resolve(offset, length)])

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Say what is data and what is a hole; the bytes are to be had here."""
        await self.before("map", offset, length)
        spans = [self._own(span) for span in await self.file.allocation(offset, length)]
        await self.after("map", offset, length)
        return spans

    def _own(self, span: Span) -> Span:
        if span.kind is Kind.ZERO:
            return span
        return replace(span, kind=Kind.DATA, leaf=self, leaf_offset=span.guest_offset)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Resize the child."""
        self.require_writable()
        await self.before("resize", size, 0)
        await self.file.resize(size, preallocation=preallocation, exact=exact)
        await self.after("resize", size, 0)

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the access that the child has or will have."""
        await self.before("reopen", 0, 0)
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Nothing is special here."""
        return {}

    async def close(self) -> None:
        """There is nothing to release."""
