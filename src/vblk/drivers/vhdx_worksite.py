"""Where a VHDX image is compacted: the image itself, or a rehearsal that changes nothing.

Owns: the little that both have in common for the compactor, and what makes the
difference: gates, durability and moving bytes on the one side, pages of one's own
on the other.

Ordering rule: on a live site plans go through the writer, so that a plan's bytes
are durable before its entries are, and its old space is free only then.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from vblk.drivers.vhdx import CACHE_PAGES, PAGE, VhdxNode
from vblk.drivers.vhdx_regions import move_bat
from vblk.drivers.vhdx_session import Level
from vblk.drivers.vhdx_writer import VhdxWriter
from vblk.extent import Kind, Missing
from vblk.formats.edits import EditedPages, Range
from vblk.formats.space import Place
from vblk.formats.vhdx.bat import Placement, Reserved
from vblk.formats.vhdx.check import survey_image
from vblk.formats.vhdx.layout import SECTOR_BITMAP_SIZE
from vblk.formats.vhdx.plan import Plan
from vblk.formats.vhdx.planner import Answer
from vblk.formats.vhdx.writing import BlockWriter
from vblk.graph.plane import Mover
from vblk.runtime.page_cache import PageCache
from vblk.units import MIB, align_up


class Worksite(ABC):
    """An image, its planner, and what is done with plans."""

    def __init__(self, node: VhdxNode, blocks: BlockWriter) -> None:
        self.node = node
        self.blocks = blocks

    @property
    def table(self) -> Range:
        """Where the BAT region is: (file offset, length)."""
        return self.blocks.geometry.bat_offset, self.blocks.geometry.bat_length

    async def read_pages(self, offset: int, length: int) -> bytes:
        """Read metadata as it is now, edits included."""
        image = self.node.image
        data = image.patch(offset, await self.node.read_metadata(offset, length), length)
        parts = [
            self.blocks.edits.store.get(at) or data[at - offset : at - offset + PAGE]
            for at in range(offset, offset + length, PAGE)
        ]
        return b"".join(parts)

    @abstractmethod
    def alone(self, offset: int, length: int) -> AbstractAsyncContextManager[object]:
        """Keep everybody else from changing the blocks of a guest range while the block runs."""

    @abstractmethod
    async def answered(self, make: Callable[[BlockWriter], Answer]) -> Plan:
        """Ask for a plan until nothing that it needs is missing."""

    @abstractmethod
    def carried_out(self, plan: Plan) -> AbstractAsyncContextManager[None]:
        """Commit a plan when the block, which moves its bytes, ends well."""

    @abstractmethod
    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy a block to another place in the file; holes stay holes."""

    @abstractmethod
    async def copy_bitmap(self, source: int, target: int) -> None:
        """Copy a sector bitmap to another place in the file."""

    @abstractmethod
    async def move_table(self, place: Place) -> None:
        """Move the BAT region."""

    @abstractmethod
    async def flush(self) -> None:
        """Make durable what was carried out."""

    @abstractmethod
    async def checkpoint(self) -> None:
        """Return when all space is free that was given back, but for what is still being read."""

    @abstractmethod
    async def cut(self) -> None:
        """Cut the file behind what is used."""


class LiveSite(Worksite):
    """An image that is open for writing; others may use it meanwhile."""

    def __init__(self, writer: VhdxWriter, blocks: BlockWriter, mover: Mover) -> None:
        super().__init__(writer.node, blocks)
        self._writer = writer
        self._mover = mover

    @classmethod
    async def enter(cls, node: VhdxNode, mover: Mover) -> "LiveSite":
        """Go to work on an image."""
        return cls(node.writer, await node.writer.prepared(), mover)

    def alone(self, offset: int, length: int) -> AbstractAsyncContextManager[object]:
        """Hold the gates; see `Worksite.alone`."""
        return self._writer.alone(offset, length)

    async def answered(self, make: Callable[[BlockWriter], Answer]) -> Plan:
        """Load what is missing; see `Worksite.answered`."""
        return await self._writer.answered(self.blocks, make)

    def carried_out(self, plan: Plan) -> AbstractAsyncContextManager[None]:
        """Change the file, and nothing that a guest can see."""
        return self._writer.carried_out(self.blocks, plan, level=Level.FILE)

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy inside the file, by the kernel where it can."""
        file = self.node.file
        for span in await file.allocation(source, length):
            to = target + span.guest_offset - source
            if span.kind is Kind.ZERO:
                await file.write_zeroes(to, span.length, unmap=True)
            else:
                await self._mover.move(span, file, to)

    async def copy_bitmap(self, source: int, target: int) -> None:
        """Copy what the bitmap is now, which need not be in its place yet."""
        await self.node.file.write(target, await self.read_pages(source, SECTOR_BITMAP_SIZE))
        for at in range(target, target + SECTOR_BITMAP_SIZE, PAGE):
            self.node.pages.drop(at)  # what stood here once is not this bitmap

    async def move_table(self, place: Place) -> None:
        """Move the BAT region while nobody else uses the image."""
        async with self._writer.alone():
            await move_bat(self._writer, self.blocks, place, level=Level.FILE)

    async def flush(self) -> None:
        """Flush the image."""
        await self._writer.flush()

    async def checkpoint(self) -> None:
        """See `Worksite.checkpoint`."""
        await self._writer.checkpoint()

    async def cut(self) -> None:
        """See `Worksite.cut`."""
        await self._writer.cut()


class Rehearsal(Worksite):
    """An image that is only looked at: plans are committed to pages that are then forgotten."""

    def __init__(self, node: VhdxNode, blocks: BlockWriter, pages: PageCache[bytes]) -> None:
        super().__init__(node, blocks)
        self._pages = pages
        self._table = super().table

    @classmethod
    async def enter(cls, node: VhdxNode) -> "Rehearsal":
        """Look at an image as it is now.

        Raises:
            CorruptImage: It must not be written.
        """
        if not node.read_only:
            await node.writer.settle()
        image = node.image
        survey = await survey_image(image, node.read_metadata)
        length = align_up(max(node.file.size, image.target_length, survey.report.image_end_offset), MIB)
        pages: PageCache[bytes] = PageCache(page_size=PAGE, limit_pages=CACHE_PAGES)
        blocks = BlockWriter.of(image, survey, EditedPages(pages), length)
        return cls(node, blocks, pages)

    @property
    def table(self) -> Range:
        """Where the BAT region would be."""
        return self._table

    @asynccontextmanager
    async def alone(self, offset: int, length: int) -> AsyncGenerator[None, None]:
        """Nobody else is here."""
        yield

    async def answered(self, make: Callable[[BlockWriter], Answer]) -> Plan:
        """Load what is missing into pages of our own."""
        while not isinstance(answer := make(self.blocks), Plan):
            assert isinstance(answer, Missing), "compacting takes no new space"
            for start, length in answer.ranges:
                data = await self.read_pages(start, length)
                for at in range(0, length, PAGE):
                    self._pages.put(start + at, data[at : at + PAGE])
        return answer

    @asynccontextmanager
    async def carried_out(self, plan: Plan) -> AsyncGenerator[None, None]:
        """Commit to our own pages; what is released is free at once."""
        yield
        self.blocks.commit(plan)
        for place, length in plan.released:
            self.blocks.space.free(place, length)

    async def copy(self, source: int, target: int, length: int) -> None:
        """Copy nothing."""

    async def copy_bitmap(self, source: int, target: int) -> None:
        """Copy nothing."""

    async def move_table(self, place: Place) -> None:
        """Give the region another place in the accounts; its pages stay where they are looked for."""
        start, length = self._table
        kept = [each for each in self.blocks.placement.reserved if each.start != start]
        moved = Reserved(place.file_offset, place.file_offset + place.length, "BAT region")
        self.blocks.placement = Placement([*kept, moved], self.blocks.placement.file_size)
        self.blocks.space.free(start, length)
        self._table = (place.file_offset, place.length)

    async def flush(self) -> None:
        """Nothing was written."""

    async def checkpoint(self) -> None:
        """Everything is free already."""

    async def cut(self) -> None:
        """Cut nothing."""
