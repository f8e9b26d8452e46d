"""Writing to a VHDX image: the shell around planner, free space and session.

Owns: overwriting without a plan, the bitmaps that a plan asks for, and space that
is given back. Plans are carried out by `vblk.drivers.plan_writer`. What is to be
done is decided in `vblk.formats.vhdx.writing`, when it becomes durable in
`vblk.drivers.vhdx_session`.

Ordering rule: space that lost its block is punched out of the host's file after
that is durable, and used again after the punch, when no read can look at it any more.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from vblk.codec.guid import Guid
from vblk.drivers.plan_writer import PlanWriter, payload_step, pieces
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_session import Level, Session
from vblk.formats.edits import EditedPages, Range
from vblk.formats.plan import Need, NeedsRoom
from vblk.formats.space import Place
from vblk.formats.vhdx.check import survey_image
from vblk.formats.vhdx.header import Header
from vblk.formats.vhdx.plan import NeedsBitmap, Plan
from vblk.formats.vhdx.writing import BlockWriter
from vblk.graph.node import Buffer, Node, Preallocation
from vblk.units import MIB, OFFSET_MAX, align_up


class VhdxWriter(PlanWriter[VhdxNode, BlockWriter, Plan]):
    """The writing side of one node.

    Args:
        node: The node, whose image is clean and may be written.
    """

    def __init__(self, node: VhdxNode) -> None:
        super().__init__(node, EditedPages(node.pages))
        self._session = Session(
            node.file,
            node.image.header,
            self._edits,
            filename=node.filename,
            durable=self._released,
            header_changed=self._header_changed,
        )
        self._making_bitmap = asyncio.Lock()
        self._to_punch: list[Range] = []
        self._punching: asyncio.Task[None] | None = None

    @property
    def _unit(self) -> int:
        return self.node.image.block_size

    def _pieces(self, offset: int, length: int) -> Generator[tuple[int, int]]:
        return pieces(offset, length, payload_step(self._unit), self._unit)

    def _check_healthy(self) -> None:
        self._session.check_healthy()

    async def _begin(self) -> None:
        await self._session.begin(Level.DATA)

    def _needs_gate(self, planner: BlockWriter, offset: int) -> bool:
        return planner.needs_gate(offset)

    # What the node asks for

    def follow_file(self, file: Node) -> None:
        """Go on in another node, metadata as well."""
        super().follow_file(file)
        self._session.file = file

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write to one present block at once, or return False: it is not that simple."""
        if self._session.level is not Level.DATA:
            return False
        self._session.check_healthy()
        length = len(data)
        file_offset = self.node.image.locate(offset, length, self.node.pages)
        if file_offset is None or not self._gates.may_share(offset, length):
            return False
        return self._file.try_write(file_offset, data)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at a guest offset."""
        view = memoryview(data)
        if await self._overwrite(offset, view):
            return
        await super().write(offset, view)

    async def _overwrite(self, offset: int, view: memoryview) -> bool:
        """Write to one present block without a plan, or return False: it is not that simple."""
        if self._session.level is not Level.DATA:
            return False
        self._session.check_healthy()
        file_offset = self.node.locate(offset, len(view))
        if file_offset is None:
            return False
        guard = self._gates.try_shared(offset, len(view))
        if guard is None:
            return False
        with guard:
            await self._bring(file_offset, view)
        return True

    async def _bring(self, file_offset: int, view: memoryview) -> None:
        if not self._file.try_write(file_offset, view):
            await self._file.write(file_offset, view)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool, no_fallback: bool) -> None:
        """Make a range read as zeros; see `Node.write_zeroes`."""
        hole = unmap and self.node.image.type != "fixed"
        for start, count in self._pieces(offset, length):
            make = partial(BlockWriter.plan_zero, guest_offset=start, length=count, unmap=unmap)
            async with self._planned(start, count, make, unmap=hole, no_fallback=no_fallback):
                pass

    async def discard(self, offset: int, length: int) -> None:
        """Forget a range; see `Node.discard`."""
        for start, count in self._pieces(offset, length):
            make = partial(BlockWriter.plan_discard, guest_offset=start, length=count)
            async with self._planned(start, count, make) as plan:
                for file_offset, size in plan.holes:
                    await self._file.discard(file_offset, size)

    async def resize(self, size: int, preallocation: Preallocation) -> None:
        """Change the virtual size; see `Node.resize`."""
        from vblk.drivers.vhdx_resize import resize

        async with self.alone() as blocks:
            await resize(self, blocks, size, preallocation)

    @asynccontextmanager
    async def alone(self, offset: int = 0, length: int = OFFSET_MAX) -> AsyncGenerator[BlockWriter, None]:
        """Keep everybody else from changing a range of the disk while the block runs."""
        blocks = await self.prepared()
        async with self._gates.exclusive(offset, length):
            yield blocks

    @property
    def changed(self) -> bool:
        """Whether the image has its data write GUID for this session."""
        return self._session.level is Level.DATA

    def become(self, data_write_guid: Guid) -> None:
        """Say which data write GUID the image gets with the first change; nothing has changed yet.

        The image's own keeps its children: for changes that no guest can see.
        """
        self._session.become(data_write_guid)

    def forget_identity(self) -> None:
        """Let the image get a further data write GUID with its next change; nothing may be in flight."""
        self._session.forget_identity()

    async def begin(self) -> None:
        """Let the image have its data write GUID for this session now, durably."""
        await self.prepared()
        await self._session.begin(Level.DATA)

    async def flush(self) -> None:
        """Make everything durable that has returned."""
        await self._session.flush()

    async def settle(self) -> None:
        """Make everything durable, and bring metadata to its places."""
        await self._session.settle()

    async def checkpoint(self) -> None:
        """Return when all space is free that was given back, but for what is still being read."""
        await self._session.checkpoint()
        if self._punching is not None:
            await asyncio.wait([self._punching])
        if self._planner is not None:
            self._planner.space.promote()

    async def cut(self) -> None:
        """Cut the file behind what is used, while it may go on being used."""
        blocks = await self.prepared()
        await self.checkpoint()
        if blocks.space.used_end == self._file.size:
            return
        await self._session.begin(Level.FILE)
        async with self._extending:
            end = blocks.space.used_end
            blocks.space.shortened(end)
            try:
                await self._session.shorten(end)
            finally:
                if self._file.size > end:  # it could not be cut
                    blocks.space.free(end, self._file.size - end)
                    blocks.space.file_size = self._file.size
                self._follow_length(blocks)

    async def close(self) -> None:
        """End the session and cut the file behind what is used. Idempotent.

        Raises:
            NodeFailed: Something had failed; the log is left to be replayed.
        """
        changed = self._session.level is not Level.NONE
        try:
            await self._session.end()
        finally:
            if self._punching is not None:
                await self._punching
        if changed:
            await self._cut()

    async def _cut(self) -> None:
        if self._planner is None:
            return
        end = self._planner.space.used_end
        if end < self._file.size:
            await self._file.resize(end, exact=False)  # devices and exports stay as long as they are
            await self._file.flush()
            self.node.adopt(self.node.image.changed(file_size=self._file.size))
        self._planner = None

    # Plans

    def carried_out(
        self, planner: BlockWriter, plan: Plan, *, more_pages: int = 0, level: Level = Level.DATA
    ) -> AbstractAsyncContextManager[None]:
        """Open the way for a plan, and commit it when the block ends well.

        `more_pages` are what the block itself may edit at its end, at once; `level`
        is what is changed.
        """
        begin = partial(self._session.begin, level)
        return self._carry_out(planner, plan, len(plan.pages) + more_pages, begin)

    async def _make(self, planner: BlockWriter, need: Need) -> None:
        """Give a chunk its sector bitmap: a change of its own, sound without what asked for it."""
        assert isinstance(need, NeedsBitmap)
        async with self._making_bitmap:
            plan = await self.answered(planner, lambda blocks: blocks.plan_bitmap(need.chunk))
            async with self.carried_out(planner, plan):
                await self.fill(plan)

    # Space

    async def _survey(self) -> BlockWriter:
        node = self.node
        survey = await survey_image(node.image, node.read_metadata)
        length = align_up(max(node.file.size, survey.report.image_end_offset), MIB)
        blocks = BlockWriter.of(node.image, survey, self._edits, length)
        if length > node.file.size:
            await self._session.begin(Level.FILE)
            await node.file.resize(length)
            self._follow_length(blocks)
        return blocks

    async def extend_by(self, blocks: BlockWriter, length: int, preallocation: Preallocation) -> None:
        """Make the file longer by `length` bytes."""
        await self._session.begin(Level.DATA)
        async with self._extending:
            length = align_up(blocks.space.file_size + length, MIB)
            await self._file.resize(length, preallocation=preallocation)
            self._extended(blocks, length)

    def _extended(self, planner: BlockWriter, length: int) -> None:
        super()._extended(planner, length)
        self._follow_length(planner)

    def _follow_length(self, blocks: BlockWriter) -> None:
        self.node.adopt(self.node.image.changed(file_size=blocks.space.file_size))
        blocks.placement = self.node.image.placement

    def follow(self, blocks: BlockWriter) -> None:
        """Let the planner see the image as the node shows it."""
        blocks.geometry = self.node.image.geometry
        blocks.placement = self.node.image.placement

    async def taken(self, blocks: BlockWriter, length: int) -> Place:
        """Take free space, making the file longer where there is none."""
        while (place := blocks.space.try_take(length)) is None:
            await self._extend(blocks, NeedsRoom(length, blocks.space.file_size))
        return place

    @property
    def parent_size(self) -> int:
        """Bytes of the parent's disk, 0 without one."""
        return 0 if self.node.backing is None else self.node.backing.size

    def _released(self, ranges: list[Range]) -> None:
        """Take space that nothing names any more, durably."""
        if ranges:
            self._to_punch += ranges
            if self._punching is None:
                self._punching = asyncio.create_task(self._give_back())

    async def _give_back(self) -> None:
        """Give the space of former blocks back to the host, then to the pool."""
        assert self._planner is not None
        space = self._planner.space
        try:
            while self._to_punch:
                ranges, self._to_punch = self._to_punch, []
                await self._punch(ranges)
                space.defer(ranges)
        finally:
            self._punching = None

    def _header_changed(self, header: Header) -> None:
        self.node.adopt(self.node.image.changed(header=header))
