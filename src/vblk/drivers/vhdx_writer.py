"""Writing to a VHDX image: the shell around planner, free space and session.

Owns: carrying out plans. It takes the gates of blocks, makes the room that a plan
asks for, does its copies and zeros, lets the caller bring the payload, and ends
the plan. What is to be done is decided in `vblk.formats.vhdx.writing`, when it
becomes durable in `vblk.drivers.vhdx_session`.

Ordering rules:
- gate, session, plan's fills, payload, commit; an exception or a cancellation
  aborts the plan and gives the gate back.
- The file is extended before anything is mapped to the extension.
- Space that lost its block is punched out of the host's file after that is
  durable, and used again after the punch, when no read can look at it any more.

Concurrency: blocks are shared by overwrites and belong to one change that gives
or takes space. Reads never wait for a gate: the space that they may be looking
at is not used again before they have finished.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial

from vblk.codec.guid import Guid
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_session import Level, Session
from vblk.errors import BlockError, OutOfRange
from vblk.extent import Missing
from vblk.formats.edits import EditedPages, Range
from vblk.formats.plan import NeedsRoom
from vblk.formats.space import Place
from vblk.formats.vhdx.check import survey_image
from vblk.formats.vhdx.header import Header
from vblk.formats.vhdx.plan import NeedsBitmap, Plan
from vblk.formats.vhdx.planner import Answer
from vblk.formats.vhdx.writing import BlockWriter
from vblk.graph.node import Buffer, Preallocation, Span
from vblk.runtime.fan_out import fan_out
from vblk.runtime.range_lock import RangeGuard, RangeLock
from vblk.units import MIB, OFFSET_MAX, align_down, align_up

BLOCKS_AT_ONCE = 256
"""The most blocks that one plan covers."""

BYTES_AT_ONCE = 64 * MIB
"""The most guest bytes that one plan covers, or else one block."""

PIECES_AT_ONCE = 8
"""How many pieces of one plan are written side by side."""


class VhdxWriter:
    """The writing side of one node.

    Args:
        node: The node, whose image is clean and may be written.
    """

    def __init__(self, node: VhdxNode) -> None:
        self.node = node
        self._file = node.file
        self._edits = EditedPages(node.pages)
        self._session = Session(
            node.file,
            node.image.header,
            self._edits,
            filename=node.filename,
            durable=self._released,
            header_changed=self._header_changed,
        )
        self._gates = RangeLock()
        self._blocks: BlockWriter | None = None
        self._preparing = asyncio.Lock()
        self._extending = asyncio.Lock()
        self._making_bitmap = asyncio.Lock()
        self._to_punch: list[Range] = []
        self._punching: asyncio.Task[None] | None = None

    # What the node asks for

    @contextmanager
    def reading(self) -> Generator[None]:
        """Keep whatever is mapped now from being used for something else while the block runs."""
        if self._blocks is None:
            yield
            return
        space = self._blocks.space
        readers = space.readers
        readers.active += 1
        try:
            yield
        finally:
            readers.active -= 1
            if not readers.active:
                space.promote()

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
        for start, length in self._pieces(offset, len(view)):
            await self._write_piece(start, view[start - offset : start - offset + length])

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

    async def _write_piece(self, offset: int, view: memoryview) -> None:
        async with self._planned(
            offset, len(view), lambda blocks: blocks.plan_write(offset, len(view))
        ) as plan:
            pieces = plan.payload
            if len(pieces) == 1:
                await self._bring(pieces[0].file_offset, view)
                return
            await fan_out(
                (
                    self._bring(
                        piece.file_offset,
                        view[piece.guest_offset - offset : piece.guest_offset - offset + piece.length],
                    )
                    for piece in pieces
                ),
                PIECES_AT_ONCE,
            )

    @asynccontextmanager
    async def place(self, offset: int, length: int) -> AsyncGenerator[list[Span], None]:
        """Make room for a range and yield where its bytes go; see `Node.place`."""

        def make(blocks: BlockWriter) -> Answer:
            return blocks.plan_write(offset, length)

        async with self._planned(offset, length, make) as plan, AsyncExitStack() as below:
            spans: list[Span] = []
            for piece in plan.payload:
                shift = piece.guest_offset - piece.file_offset
                place = self._file.place(piece.file_offset, piece.length)
                for span in await below.enter_async_context(place):
                    span.guest_offset += shift
                    spans.append(span)
            yield spans

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool, no_fallback: bool) -> None:
        """Make a range read as zeros; see `Node.write_zeroes`."""
        for start, count in self._pieces(offset, length):
            make = partial(BlockWriter.plan_zero, guest_offset=start, length=count, unmap=unmap)
            async with self._planned(start, count, make, unmap=unmap, no_fallback=no_fallback):
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

    def become(self, data_write_guid: Guid) -> None:
        """Say which data write GUID the image gets with the first change; nothing has changed yet.

        The image's own keeps its children: for changes that no guest can see.
        """
        self._session.become(data_write_guid)

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
        if self._blocks is not None:
            self._blocks.space.promote()

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
        if self._blocks is None:
            return
        end = self._blocks.space.used_end
        if end < self._file.size:
            await self._file.resize(end, exact=False)  # devices and exports stay as long as they are
            await self._file.flush()
            self.node.adopt(self.node.image.changed(file_size=self._file.size))
        self._blocks = None

    # Plans

    def _pieces(self, offset: int, length: int) -> Generator[tuple[int, int]]:
        """Divide a guest range into what one plan takes."""
        block_size = self.node.image.block_size
        step = max(block_size, min(BYTES_AT_ONCE, BLOCKS_AT_ONCE * block_size))
        end = offset + length
        while offset < end:
            count = min(end, align_down(offset + step, block_size)) - offset
            yield offset, count
            offset += count

    @asynccontextmanager
    async def _planned(
        self,
        offset: int,
        length: int,
        make: Callable[[BlockWriter], Answer],
        *,
        unmap: bool = False,
        no_fallback: bool = False,
    ) -> AsyncGenerator[Plan, None]:
        """Plan, do what must come before the payload, and commit when the block ends well."""
        blocks = await self.prepared()
        guard, plan = await self._gated(blocks, offset, length, make)
        try:
            if plan.changes_nothing:
                yield plan
                return
            async with self.carried_out(blocks, plan):
                await self.fill(plan, unmap=unmap and not blocks.fixed, no_fallback=no_fallback)
                yield plan
        finally:
            guard.release()

    @asynccontextmanager
    async def carried_out(
        self, blocks: BlockWriter, plan: Plan, *, more_pages: int = 0, level: Level = Level.DATA
    ) -> AsyncGenerator[None, None]:
        """Open the way for a plan, and commit it when the block ends well.

        `more_pages` are what the block itself may edit at its end, at once; `level`
        is what is changed.
        """
        reserved = 0
        touched = False
        try:
            wanted = len(plan.pages) + more_pages
            while not self._edits.try_reserve(wanted):
                await self._session.flush()
            reserved = wanted
            await self._session.begin(level)
            touched = True
            yield
            self._session.check_healthy()
            blocks.commit(plan)
        except BaseException:
            blocks.abort(plan, touched=touched)
            raise
        finally:
            self._edits.unreserve(reserved)

    async def _gated(
        self, blocks: BlockWriter, offset: int, length: int, make: Callable[[BlockWriter], Answer]
    ) -> tuple[RangeGuard, Plan]:
        """Return a plan and the gate that it needs, held."""
        block_size = blocks.geometry.block_size
        start = align_down(offset, block_size)
        span = align_up(offset + length, block_size) - start
        exclusive = blocks.needs_gate(offset)
        while True:
            guard = self._gates.exclusive(start, span) if exclusive else self._gates.shared(start, span)
            await guard.acquire()
            try:
                self._check_range(offset, length)
                plan = await self.answered(blocks, make)
            except BaseException:
                guard.release()
                raise
            if exclusive or not plan.exclusive:
                return guard, plan
            blocks.abort(plan, touched=False)
            guard.release()
            exclusive = True

    def _check_range(self, offset: int, length: int) -> None:
        """Refuse what a resize has cut off while it was waited for."""
        if offset + length > self.node.size:
            raise OutOfRange(
                f"range of {length} bytes at {offset} does not lie within the disk any more",
                filename=self.node.filename,
                length=length,
            )

    async def answered(self, blocks: BlockWriter, make: Callable[[BlockWriter], Answer]) -> Plan:
        """Ask for a plan until nothing that it needs is missing."""
        with ExitStack() as pins:
            while True:
                answer = make(blocks)
                if isinstance(answer, Plan):
                    return answer
                if isinstance(answer, Missing):
                    await self.node.load(answer, pins)
                elif isinstance(answer, NeedsRoom):
                    await self._extend(blocks, answer)
                else:
                    await self._make_bitmap(blocks, answer)

    async def fill(self, plan: Plan, *, unmap: bool = False, no_fallback: bool = False) -> None:
        """Do a plan's copies and zeros."""
        for piece in plan.copies:
            data = await self.node.read(piece.guest_offset, piece.length)
            await self._file.write(piece.file_offset, data)
        for file_offset, length in _joined(plan.zeros):
            await self._file.write_zeroes(file_offset, length, unmap=unmap, no_fallback=no_fallback)

    async def _make_bitmap(self, blocks: BlockWriter, need: NeedsBitmap) -> None:
        """Give a chunk its sector bitmap: a change of its own, sound without what asked for it."""
        async with self._making_bitmap:
            plan = await self.answered(blocks, lambda blocks: blocks.plan_bitmap(need.chunk))
            async with self.carried_out(blocks, plan):
                await self.fill(plan)

    # Space

    async def prepared(self) -> BlockWriter:
        """Return the planner; before the first change look through the whole BAT."""
        self._session.check_healthy()
        if self._blocks is None:
            async with self._preparing:
                if self._blocks is None:
                    self._blocks = await self._survey()
        return self._blocks

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

    async def _extend(self, blocks: BlockWriter, need: NeedsRoom) -> None:
        """Make the file longer, unless somebody has done so meanwhile."""
        await self._session.begin(Level.DATA)
        space = blocks.space
        async with self._extending:
            if space.file_size != need.file_size:
                return
            length = space.extension(need.length)
            try:
                await self._file.resize(length)
            except BlockError:
                length = align_up(space.file_size + need.length, MIB)
                await self._file.resize(length)
            self._extended(blocks, length)

    async def extend_by(self, blocks: BlockWriter, length: int, preallocation: Preallocation) -> None:
        """Make the file longer by `length` bytes."""
        await self._session.begin(Level.DATA)
        async with self._extending:
            length = align_up(blocks.space.file_size + length, MIB)
            await self._file.resize(length, preallocation=preallocation)
            self._extended(blocks, length)

    def _extended(self, blocks: BlockWriter, length: int) -> None:
        blocks.space.extended(length)
        self._follow_length(blocks)

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
                self._punching = asyncio.create_task(self._punch())

    async def _punch(self) -> None:
        """Give the space of former blocks back to the host, then to the pool."""
        assert self._blocks is not None
        space = self._blocks.space
        try:
            while self._to_punch:
                ranges, self._to_punch = self._to_punch, []
                try:
                    for file_offset, length in _joined(ranges):
                        await self._file.discard(file_offset, length)
                except BlockError as error:
                    self.node.warnings.append(f"space could not be given back to the host: {error}")
                space.defer(ranges)
        finally:
            self._punching = None

    def _header_changed(self, header: Header) -> None:
        self.node.adopt(self.node.image.changed(header=header))


def _joined(ranges: list[Range]) -> list[Range]:
    """Join ranges that follow each other."""
    joined: list[Range] = []
    for start, length in sorted(ranges):
        if joined and joined[-1][0] + joined[-1][1] == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((start, length))
    return joined
