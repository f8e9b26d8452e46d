"""A format that is written by plans, as a node: what those formats' nodes share.

Owns: loading pages of tables, and handing what changes the disk to the writing
side, which is `vblk.drivers.plan_writer` and is loaded when it is first needed.
What the bytes mean, and what the options are, is for the subclasses.
"""

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Generic, TypeVar

from vblk.extent import Missing
from vblk.graph.edge import Edge, Role
from vblk.graph.mapper import Mapper
from vblk.graph.node import Buffer, Node, Span
from vblk.runtime.page_cache import PageCache

if TYPE_CHECKING:
    from typing import Any

    from vblk.drivers.plan_writer import PlanWriter

AnyWriter = TypeVar("AnyWriter", bound="PlanWriter[Any, Any, Any]")


class PlanNode(Mapper, Generic[AnyWriter]):
    """An image, for reading until `start_writing` is called."""

    def __init__(self, name: str, filename: str, *, file: Node, pages: PageCache[bytes]) -> None:
        super().__init__(name, filename, read_only=True, file=file)
        self.pages = pages
        self._writer: AnyWriter | None = None

    @property
    def writer(self) -> AnyWriter:
        """The writing side.

        Raises:
            ReadOnly: The image is open for reading only.
        """
        if self._writer is None:
            self.require_writable()
        assert self._writer is not None
        return self._writer

    def child_changed(self, edge: Edge) -> None:
        """Let the writing side follow to another file."""
        super().child_changed(edge)
        if self._writer is not None and edge.role is Role.FILE:
            self._writer.follow_file(edge.node)

    @abstractmethod
    async def start_writing(self) -> None:
        """Let the image be changed from now on; the file is open for writing."""

    @abstractmethod
    async def _load_again(self) -> None:
        """Show the image anew, as it is to be written now."""

    @abstractmethod
    async def _read_pages(self, start: int, length: int) -> bytes:
        """Read some pages of tables, zeros behind the end of the file."""

    async def load(self, missing: Missing, pins: ExitStack) -> None:
        """Read pages of tables."""
        size = self.pages.page_size
        for start, length in missing.ranges:
            pins.enter_context(self.pages.pinned(range(start, start + length, size)))
            data = await self._read_pages(start, length)
            for at in range(0, length, size):
                if start + at not in self.pages:  # edited meanwhile: what is in memory is newer
                    self.pages.put(start + at, data[at : at + size])

    def try_resolve(self, offset: int, length: int) -> list[Span] | None:
        """Answer while nobody writes: space that is given back may hold other bytes soon."""
        return None if self._writer is not None else super().try_resolve(offset, length)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read through the whole chain; what is being read is not used anew meanwhile."""
        with self.reading():
            await super().read_into(offset, buffer)

    def reading(self) -> AbstractContextManager[None]:
        """Keep what is mapped now from being used anew while the block runs."""
        return super().reading() if self._writer is None else self._writer.reading()

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write payload, taking space for it where it has none."""
        await self.writer.write(offset, data)
        if fua:
            await self.flush()

    def place(self, offset: int, length: int) -> AbstractAsyncContextManager[list[Span]]:
        """Make room for a range; see `Node.place`."""
        return self.writer.place(offset, length)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Make a range read as zeros; see `Node.write_zeroes`."""
        await self.writer.write_zeroes(offset, length, unmap=unmap, no_fallback=no_fallback)
        if fua:
            await self.flush()

    async def discard(self, offset: int, length: int) -> None:
        """Forget a range: whole clusters or blocks read as zeros then; see `Node.discard`."""
        await self.writer.discard(offset, length)

    async def flush(self) -> None:
        """Bring payload and tables to stable storage."""
        if self._writer is None:
            await self._file.flush()
        else:
            await self._writer.flush()

    async def reopen(self, *, read_only: bool) -> None:
        """Change between reading only and writing."""
        if read_only == self.read_only:
            return
        if read_only:
            await self.writer.close()
            self._writer = None
            self.read_only = True
        else:
            await self._load_again()
            await self.start_writing()

    async def _settle(self) -> None:
        """Bring what was changed to its places, so that the file shows it."""
        if self._writer is not None:
            await self._writer.settle()

    async def close(self) -> None:
        """End writing, and forget the pages.

        Raises:
            NodeFailed: Writing had failed.
        """
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                await writer.close()
        finally:
            self.pages.clear()
