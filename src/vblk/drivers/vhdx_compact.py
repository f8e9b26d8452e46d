"""Making the file of a VHDX image smaller, while the disk stays as it is.

Owns: the order of the work. What a block can do without is decided in
`vblk.formats.vhdx.compaction`, who moves where in `vblk.formats.vhdx.packing`;
how a plan becomes durable is the worksite's.

Ordering rules:
1. blocks are given back, then the sector bitmaps that nobody needs any more,
2. what was given back is durable and free; only then may something move there,
3. the BAT region and bitmaps move, durably, then blocks into their former places,
4. the file is cut when nothing names its end any more, durably.
A crash at any moment leaves the same disk, and perhaps unused space in the file.

Concurrency: others may use the image. A block is held only while it is looked
through or copied; what changed meanwhile is left as it is.

Source: [MS-VHDX] "BAT Entry", "Log".
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from vblk.drivers.vhdx_worksite import Worksite
from vblk.formats.edits import Range
from vblk.formats.vhdx.bat import Geometry, State
from vblk.formats.vhdx.compaction import CompactionPlanner, block_of, chunk_of, entries_with_places
from vblk.formats.vhdx.layout import (
    BAT_ENTRY_SIZE,
    BAT_OFFSET_MASK,
    BAT_STATE_MASK,
    PAGE_SIZE,
    SECTOR_BITMAP_SIZE,
)
from vblk.formats.vhdx.packing import Move, Tenant, pack
from vblk.formats.vhdx.plan import Plan
from vblk.graph.plane import reads_zero
from vblk.runtime.fan_out import fan_out
from vblk.units import MIB, align_up

AT_ONCE = 4
"""How many blocks are looked through, or moved, side by side."""

BATCH = 256 * MIB
"""How many moved bytes become durable together."""

ROUNDS_MAX = 16
"""How often what is left is looked at again: beside a guest it need not come to an end by itself."""


@dataclass(slots=True)
class Gains:
    """What was given back and moved: numbers of blocks and bitmaps, and bytes.

    `zero_blocks` held zeros alone, `parents_blocks` none of their sectors, so
    that they are the parent's; `anchors` are unmapped blocks that held on to
    space.
    """

    zero_blocks: int = 0
    parents_blocks: int = 0
    anchors: int = 0
    bitmaps: int = 0
    moved_blocks: int = 0
    moved_bitmaps: int = 0
    moved_tables: int = 0
    moved_bytes: int = 0


def _nothing(_: int) -> None:
    """Tell nobody."""


class Compactor:
    """The work on one image.

    Args:
        site: Where.
        told: Told of bytes that are done: all that blocks have once when they
            are looked through, and once more when they move or stay.
    """

    def __init__(self, site: Worksite, told: Callable[[int], None] = _nothing) -> None:
        self.gains = Gains()
        self.released: list[Range] = []
        """What was given back: (file offset, length)."""
        self._site = site
        self._told = told
        self._looked_through = 0
        self._not_flushed = 0

    @property
    def _geometry(self) -> Geometry:
        """The table as it is now: a resize may come in between."""
        return self._site.blocks.geometry

    async def count_bytes(self) -> int:
        """Return the bytes of all blocks that have space."""
        count = 0
        async for places in self._windows():
            count += sum(entry & BAT_STATE_MASK >= State.FULLY_PRESENT for _, entry in places)
        return count << self._geometry.block_shift

    async def give_back(self) -> None:
        """Give back what reads the same without it."""
        chunks: list[int] = []
        async for places in self._windows():
            blocks: list[Range] = []
            for index, entry in places:
                block, chunk = block_of(self._geometry, index), chunk_of(self._geometry, index)
                if block is not None:
                    blocks.append((block, entry))
                elif chunk is not None:
                    chunks.append(chunk)
            await fan_out((self._give_back(block, entry) for block, entry in blocks), AT_ONCE)
        await fan_out((self._give_back_bitmap(chunk) for chunk in chunks), AT_ONCE)
        await self._site.checkpoint()

    async def pack(self) -> None:
        """Move what is high in the file to what is free below, and cut the file."""
        for _ in range(ROUNDS_MAX):
            if not await self._move_table_down() and not await self._pack_once():
                break
        await self._site.cut()

    async def _windows(self) -> AsyncIterator[list[tuple[int, int]]]:
        """Yield the (index, entry) of all entries that name a place, a piece of the table at a time."""
        end = align_up(self._geometry.entries * BAT_ENTRY_SIZE, PAGE_SIZE)
        for start in range(0, end, MIB):
            at = self._geometry.bat_offset + start
            raw = await self._site.read_pages(at, min(MIB, end - start))
            places = list(entries_with_places(start // BAT_ENTRY_SIZE, raw))
            if places:
                yield places

    async def _give_back(self, block: int, entry: int) -> None:
        geometry, site = self._geometry, self._site
        state, place = entry & BAT_STATE_MASK, entry & BAT_OFFSET_MASK
        zeros_at = None
        async with site.alone(block << geometry.block_shift, geometry.block_size):
            if block >= geometry.payload_blocks:
                return  # cut off meanwhile
            if state >= State.FULLY_PRESENT:
                if await reads_zero(site.node.file, place, geometry.bytes_of_block(block)):
                    zeros_at = place
                self._looked_through += geometry.block_size
                self._told(geometry.block_size)
            if state == State.FULLY_PRESENT and zeros_at is None:
                return
            plan = await site.answered(lambda blocks: CompactionPlanner(blocks, block).give_back(zeros_at))
            await self._carry_out(plan)
        for became in plan.entries.values():
            if state < State.FULLY_PRESENT:
                self.gains.anchors += 1
            elif became == State.ZERO:
                self.gains.zero_blocks += 1
            elif became == State.NOT_PRESENT:
                self.gains.parents_blocks += 1

    async def _give_back_bitmap(self, chunk: int) -> None:
        async with self._chunk_alone(chunk):
            plan = await self._site.answered(
                lambda blocks: CompactionPlanner(
                    blocks, chunk << self._geometry.chunk_shift
                ).give_back_bitmap()
            )
            await self._carry_out(plan)
        self.gains.bitmaps += len(plan.entries)

    async def _carry_out(self, plan: Plan) -> None:
        if plan.entries:
            async with self._site.carried_out(plan):
                pass
            self.released += plan.released

    def _chunk_alone(self, chunk: int) -> AbstractAsyncContextManager[object]:
        geometry = self._geometry
        length = geometry.block_size << geometry.chunk_shift
        return self._site.alone(chunk * length, length)

    async def _move_table_down(self) -> bool:
        """Move the BAT region, if it lies where the file could end and fits below; tell whether it did."""
        space = self._site.blocks.space
        start, length = self._site.table
        if start + length <= space.file_size - space.free_bytes:
            return False
        for low, high in space.free_ranges():
            if low + length > start:
                break
            if high - low >= length:
                place = space.try_take_at(low, length)
                assert place is not None, "it is free"
                await self._site.move_table(place)
                await self._site.checkpoint()
                self.gains.moved_tables += 1
                self.gains.moved_bytes += length
                return True
        return False

    async def _pack_once(self) -> bool:
        """Choose moves and make them; tell whether anything moved."""
        blocks, bitmaps, floor = await self._tenants()
        packing = pack(
            self._site.blocks.space.free_ranges(),
            blocks,
            bitmaps,
            block_size=self._geometry.block_size,
            floor=floor,
        )
        stays = self._looked_through - sum(move.tenant.length for move in (*packing.aside, *packing.down))
        self._looked_through = 0
        self._told(max(0, stays))
        before = self.gains.moved_bytes
        for moves in (packing.aside, packing.down):
            if moves:
                await fan_out((self._move(move) for move in moves), AT_ONCE)
                await self._site.checkpoint()
        return self.gains.moved_bytes > before

    async def _tenants(self) -> tuple[list[Tenant], list[Tenant], int]:
        """Return who may have to move, blocks and sector bitmaps, and where the file must end at least."""
        geometry, space = self._geometry, self._site.blocks.space
        floor = max(space.file_size - space.free_bytes, self._end_of_structures())
        blocks: list[Tenant] = []
        bitmaps: list[Tenant] = []
        async for places in self._windows():
            for index, entry in places:
                place = entry & BAT_OFFSET_MASK
                if block_of(geometry, index) is not None:
                    if entry & BAT_STATE_MASK >= State.FULLY_PRESENT and place + geometry.block_size > floor:
                        blocks.append(Tenant(place, geometry.block_size, index))
                elif chunk_of(geometry, index) is not None:
                    bitmaps.append(Tenant(place, SECTOR_BITMAP_SIZE, index))
                elif entry & BAT_STATE_MASK >= State.FULLY_PRESENT:
                    floor = max(floor, place + geometry.block_size)  # no block of the disk: it stays
        return [each for each in blocks if each.place + each.length > floor], bitmaps, floor

    def _end_of_structures(self) -> int:
        """Return where the structures end that do not move.

        The BAT region moves when there will be room for it below.
        """
        placement, space = self._site.blocks.placement, self._site.blocks.space
        start, length = self._site.table
        free_below = sum(min(high, start) - low for low, high in space.free_ranges() if low < start)
        return max(
            each.end
            for each in placement.reserved
            if each.end <= space.file_size and (each.start != start or free_below < length)
        )

    async def _move(self, move: Move) -> None:
        geometry, site = self._geometry, self._site
        tenant = move.tenant
        place = site.blocks.space.try_take_at(move.to, tenant.length)
        if place is None:
            return  # somebody was quicker
        block, chunk = block_of(geometry, tenant.entry), chunk_of(geometry, tenant.entry)
        plan = Plan()
        try:
            if block is not None:
                async with site.alone(block << geometry.block_shift, geometry.block_size):
                    plan = await site.answered(
                        lambda blocks: CompactionPlanner(blocks, block).move(tenant.place, place)
                    )
                    if plan.places:
                        async with site.carried_out(plan):
                            await site.copy(tenant.place, place.file_offset, tenant.length)
            elif chunk is not None:
                async with self._chunk_alone(chunk):
                    first = chunk << geometry.chunk_shift
                    plan = await site.answered(
                        lambda blocks: CompactionPlanner(blocks, first).move_bitmap(tenant.place, place)
                    )
                    if plan.places:
                        async with site.carried_out(plan):
                            await site.copy_bitmap(tenant.place, place.file_offset)
        finally:
            if not plan.places:
                site.blocks.space.put_back(place)
        if plan.places:
            await self._count_move(tenant, is_block=block is not None)

    async def _count_move(self, tenant: Tenant, *, is_block: bool) -> None:
        self.gains.moved_blocks += is_block
        self.gains.moved_bitmaps += not is_block
        self.gains.moved_bytes += tenant.length
        self._told(tenant.length)
        self._not_flushed += tenant.length
        if self._not_flushed >= BATCH:
            self._not_flushed = 0
            await self._site.flush()
