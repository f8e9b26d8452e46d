"""Planning changes of the disk: which blocks take, keep and lose which space.

Owns: the three questions `plan_write`, `plan_zero` and `plan_discard`, and the
end of every plan, `commit` or `abort`, which edits BAT and bitmap pages in
memory. It must not wait, read or write: what it lacks it names.

Ordering rule: a mapping is edited only after the bytes behind it were written.
Whether those must be durable before the edit may be is the plan's `barrier`:

    the block's former content   its new space   barrier
    zeros                        fresh           no: after a crash it reads as before
    zeros                        stale           yes, and the rest of the block is zeroed
    the parent's                 any             yes: new sectors must not show zeros
    its own                      the same        no

A block that was not partially present has its bits cleared in the same edit that
makes it so. Space of a block that lost it is named in the plan, for it is free
only when the edit is durable.

Source: [MS-VHDX] "Payload BAT Entry States", "Sector Bitmap Blocks".
"""

from vblk.codec.bits import all_set, clear_bits, set_bits
from vblk.errors import CorruptImage
from vblk.formats.edits import EditedPages, PageEditor
from vblk.formats.vhdx.bat import Fault, Geometry, Placement, State
from vblk.formats.vhdx.check import Survey, writing_refused
from vblk.formats.vhdx.image import VhdxImage
from vblk.formats.vhdx.layout import BAT_ENTRY_SIZE, BAT_OFFSET_MASK, BAT_STATE_MASK, PAGE_SIZE
from vblk.formats.vhdx.plan import Plan, SectorRun
from vblk.formats.vhdx.planner import Answer, Planner, bit_pages, block_bits
from vblk.formats.vhdx.space import Space


class BlockWriter:
    """The planner of one image.

    Args:
        geometry: Of the image's BAT.
        placement: Where blocks may lie.
        edits: The metadata pages.
        space: The free space.
        anchors: File offsets that unmapped blocks hold on to, each owned by its block.
        fixed: Whether blocks keep their space for ever.
        strays: Whether entries may name places that are not theirs (B12, B13): these
            names are taken away from every page of the BAT that is edited.
        filename: For errors.

    Guest ranges have at least one byte, end inside the disk, and may have any
    alignment. Concurrency: every method runs to completion. A plan is good for
    as long as its blocks' gate is held.
    """

    def __init__(
        self,
        geometry: Geometry,
        placement: Placement,
        edits: EditedPages,
        space: Space,
        *,
        anchors: frozenset[int],
        fixed: bool,
        filename: str,
        strays: bool = False,
    ) -> None:
        self.geometry = geometry
        self.placement = placement
        self.edits = edits
        self.space = space
        self.fixed = fixed
        self.filename = filename
        self._anchors = set(anchors)
        self._strays = strays

    @classmethod
    def of(cls, image: VhdxImage, survey: Survey, edits: EditedPages, file_size: int) -> "BlockWriter":
        """Return the planner of an image whose file is, or is to be taken as, so many bytes long.

        Raises:
            CorruptImage: The survey found a reason not to write to the image.
        """
        if survey.report.read_only_reasons:
            raise writing_refused(survey.report.read_only_reasons[0], image.filename)
        reserved = image.placement.reserved
        return cls(
            image.geometry,
            Placement(reserved, file_size),
            edits,
            Space(survey.owners, reserved, file_size, may_reuse=survey.anchors_complete),
            anchors=survey.anchors,
            fixed=image.type == "fixed",
            filename=image.filename,
            strays="B12" in survey.report.counts or "B13" in survey.report.counts,
        )

    def plan_write(self, guest_offset: int, length: int) -> Answer:
        """Plan where `length` bytes go that a caller will bring.

        Raises:
            CorruptImage: A block of the range is damaged.
        """
        planner = Planner(self, guest_offset, guest_offset + length)
        return planner.run(planner.write_block)

    def plan_zero(self, guest_offset: int, length: int, *, unmap: bool) -> Answer:
        """Plan to make a range read as zeros; with `unmap` whole blocks lose their space."""
        planner = Planner(self, guest_offset, guest_offset + length)
        return planner.run(planner.unmap_block if unmap and not self.fixed else planner.zero_block)

    def plan_discard(self, guest_offset: int, length: int) -> Answer:
        """Plan to forget a range: whole blocks read as zeros and lose their space, others may stay."""
        if self.fixed:
            return Plan()
        planner = Planner(self, guest_offset, guest_offset + length)
        return planner.run(planner.discard_block)

    def plan_bitmap(self, chunk: int) -> Answer:
        """Plan the sector bitmap of a chunk, all bits clear."""
        block = chunk << self.geometry.chunk_shift
        start = block << self.geometry.block_shift
        planner = Planner(self, start, start + 1)
        return planner.run(planner.make_bitmap)

    def needs_gate(self, guest_offset: int) -> bool:
        """Guess whether a write at `guest_offset` will need its block for itself."""
        geometry = self.geometry
        at = geometry.entry_offset(geometry.payload_index(guest_offset >> geometry.block_shift))
        page = self.edits.store.get(at & -PAGE_SIZE)
        return page is None or page[at & (PAGE_SIZE - 1)] & BAT_STATE_MASK < State.FULLY_PRESENT

    def commit(self, plan: Plan) -> None:
        """Edit the metadata: the plan's bytes are written, if not yet durable."""
        pages = PageEditor(self.edits)
        for index, entry in plan.entries.items():
            self._put_entry(pages, index, entry)
        for run in plan.runs:
            self._put_run(pages, run)
        self._anchors.difference_update(offset for offset, _ in plan.released)
        self._anchors.difference_update(entry & BAT_OFFSET_MASK for entry in plan.entries.values())
        if self._strays:
            self._drop_strays(pages)
        pages.finish()
        self.edits.require(barrier=plan.barrier, released=plan.released)
        self._unpin(plan)

    def abort(self, plan: Plan, *, touched: bool) -> None:
        """Give everything back. With `touched` bytes may have been written to the plan's space."""
        for place in plan.places:
            if touched:
                self.space.free(place.file_offset, place.length)
            else:
                self.space.put_back(place)
        self._unpin(plan)

    def holds_anchor(self, file_offset: int) -> bool:
        """Tell whether a place belongs to the unmapped block that names it."""
        return file_offset in self._anchors

    def require(self, fault: Fault | None, index: int) -> None:
        """Raise CorruptImage when a block is damaged; `index` is that of its BAT entry."""
        if fault is not None:
            at = self.geometry.entry_offset(index)
            raise CorruptImage(
                fault.reason,
                f"{fault.message}; its BAT entry is at file offset {at:#x}",
                filename=self.filename,
                offset=at,
            )

    def _unpin(self, plan: Plan) -> None:
        for at in plan.pages:
            self.edits.store.unpin(at)
        plan.pages = set()

    def _put_entry(self, pages: PageEditor, index: int, entry: int) -> None:
        at = self.geometry.entry_offset(index)
        start = at & (PAGE_SIZE - 1)
        pages.at(at - start)[start : start + BAT_ENTRY_SIZE] = entry.to_bytes(BAT_ENTRY_SIZE, "little")

    def _drop_strays(self, pages: PageEditor) -> None:
        """Let entries of blocks without data name no place but one that they own."""
        bat = range(self.geometry.bat_offset, self.geometry.entry_offset(self.geometry.entries))
        for at, page in pages.opened():
            for start in range(0, PAGE_SIZE if at in bat else 0, BAT_ENTRY_SIZE):
                entry = int.from_bytes(page[start : start + BAT_ENTRY_SIZE], "little")
                place, state = entry & BAT_OFFSET_MASK, entry & BAT_STATE_MASK
                if not place or state >= State.FULLY_PRESENT or at + start not in bat:
                    continue
                if state in (State.NOT_PRESENT, State.ZERO) or place not in self._anchors:
                    page[start : start + BAT_ENTRY_SIZE] = state.to_bytes(BAT_ENTRY_SIZE, "little")

    def _put_run(self, pages: PageEditor, run: SectorRun) -> None:
        geometry = self.geometry
        if run.fresh_block:
            for at, bit, count in bit_pages(run.bitmap_offset, *block_bits(geometry, run.block)):
                clear_bits(pages.at(at), bit, count)
        for at, bit, count in bit_pages(run.bitmap_offset, run.first_bit, run.count):
            set_bits(pages.at(at), bit, count)
        # All sectors are here: from now on the block is read without its bits.
        first, _ = block_bits(geometry, run.block)
        sectors = geometry.bytes_of_block(run.block) >> geometry.sector_shift
        for at, bit, count in bit_pages(run.bitmap_offset, first, sectors):
            page = pages.peek(at)
            if page is None or not all_set(page, bit, count):
                return
        index = geometry.payload_index(run.block)
        at = geometry.entry_offset(index)
        start = at & (PAGE_SIZE - 1)
        bat_page = pages.peek(at - start)
        assert bat_page is not None, "a plan pins the BAT pages of its partial blocks"
        entry = int.from_bytes(bat_page[start : start + BAT_ENTRY_SIZE], "little")
        if entry & BAT_STATE_MASK == State.PARTIALLY_PRESENT:
            self._put_entry(pages, index, entry & BAT_OFFSET_MASK | State.FULLY_PRESENT)
