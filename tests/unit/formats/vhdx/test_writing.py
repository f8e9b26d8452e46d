"""Plans: what each change means for a block in each state, and what must be durable first."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vblk.codec.bits import all_set, clear_bits, set_bits
from vblk.errors import CorruptImage
from vblk.extent import Missing
from vblk.formats.edits import EditedPages
from vblk.formats.plan import NeedsRoom, Piece
from vblk.formats.vhdx.bat import BITMAP_PRESENT, Geometry, Placement, Reserved, State
from vblk.formats.vhdx.ownership import Owner, OwnershipTable
from vblk.formats.vhdx.plan import NeedsBitmap, Plan
from vblk.formats.vhdx.space import Space
from vblk.formats.vhdx.writing import BlockWriter
from vblk.runtime.page_cache import PageCache
from vblk.units import GIB, KIB, MIB

PAGE = 4096
BAT = 2 * MIB
BITMAP = 4 * MIB
BLOCK = 5 * MIB
"""Where block 0 lies in those of these images that have it."""


@dataclass
class Image:
    """A disk of 64 MiB in blocks of 1 MiB, whose first block is in `state`."""

    state: int = State.NOT_PRESENT
    place: int = 0
    differencing: bool = False
    bits: bytes = b""
    has_bitmap: bool = False
    fresh: bool = True
    fixed: bool = False
    size: int = 64 * MIB
    anchors: frozenset[int] = frozenset()
    store: PageCache[bytes] = field(init=False)
    writer: BlockWriter = field(init=False)

    def __post_init__(self) -> None:
        geometry = Geometry(self.size, MIB, 512, self.differencing, BAT, MIB)
        self.store = PageCache(limit_pages=1000)
        for at in range(BAT, BAT + 9 * PAGE, PAGE):
            self.store.put(at, bytes(PAGE))
        owners = OwnershipTable()
        for start in (BITMAP, BLOCK):
            owners.claim(start, MIB, Owner.BLOCK_START)
        reserved = (Reserved(0, 4 * MIB, "what is reserved"),)
        length = 6 * MIB if self.fresh else 10 * MIB
        space = Space(owners, reserved, length)
        if self.fresh:
            space.extended(10 * MIB)
        self.edits = EditedPages(self.store, 100)
        self.writer = BlockWriter(
            geometry,
            Placement(reserved, 10 * MIB),
            self.edits,
            space,
            anchors=self.anchors,
            fixed=self.fixed,
            filename="x",
        )
        self.put(0, self.place | self.state)
        if self.has_bitmap:
            self.put(geometry.bitmap_index(0), BITMAP | BITMAP_PRESENT)
            self.store.put(BITMAP, self.bits.ljust(PAGE, b"\0"))

    def put(self, index: int, entry: int) -> None:
        at, within = (BAT + index * 8) & -PAGE, index * 8 % PAGE
        page = self.store.get(at)
        assert page is not None
        self.store.put(at, page[:within] + entry.to_bytes(8, "little") + page[within + 8 :])

    def entry(self, index: int = 0) -> tuple[int, int]:
        page = self.store.get((BAT + index * 8) & -PAGE)
        assert page is not None
        value = int.from_bytes(page[index * 8 % PAGE :][:8], "little")
        return value & 7, value & ~0xFFFFF

    def sector_bits(self) -> bytes:
        page = self.store.get(BITMAP)
        assert page is not None
        return page[: MIB // 512 // 8]

    def write(self, offset: int, length: int) -> Plan:
        plan = self.writer.plan_write(offset, length)
        assert isinstance(plan, Plan)
        return plan


def child(state: int, place: int = 0, bits: bytes = b"", *, fresh: bool = True) -> Image:
    return Image(state, place, True, bits, has_bitmap=True, fresh=fresh)


ABSENT = (State.NOT_PRESENT, State.UNDEFINED, State.ZERO, State.UNMAPPED)


def test_a_present_block_is_overwritten_in_place_and_shared() -> None:
    image = Image(State.FULLY_PRESENT, BLOCK)
    plan = image.write(100, 5000)
    assert plan.payload == [Piece(100, 5000, BLOCK + 100)]
    assert (plan.exclusive, plan.barrier, plan.pages, plan.zeros) == (False, False, set(), [])


@pytest.mark.parametrize("state", ABSENT)
def test_fresh_space_reads_as_zeros_and_needs_no_barrier(state: int) -> None:
    image = Image(state)
    plan = image.write(100, 5000)
    assert (plan.payload, plan.zeros) == ([Piece(100, 5000, 6 * MIB + 100)], [])
    assert (plan.exclusive, plan.barrier) == (True, False)
    image.writer.commit(plan)
    assert image.entry() == (State.FULLY_PRESENT, 6 * MIB)


@pytest.mark.parametrize("state", ABSENT)
def test_stale_space_is_zeroed_around_the_payload_before_the_mapping_may_be_durable(state: int) -> None:
    plan = Image(state, fresh=False).write(100, 5000)
    assert plan.zeros == [(6 * MIB, 100), (6 * MIB + 5100, MIB - 5100)]
    assert plan.barrier


def test_an_anchor_is_used_again_and_none_of_what_it_held_is_seen() -> None:
    image = Image(State.UNMAPPED, BLOCK, anchors=frozenset({BLOCK}))
    plan = image.write(0, 4096)
    assert plan.payload == [Piece(0, 4096, BLOCK)]
    assert plan.zeros == [(BLOCK + 4096, MIB - 4096)]
    assert plan.barrier
    image.writer.commit(plan)
    assert image.entry() == (State.FULLY_PRESENT, BLOCK)
    assert not image.writer.holds_anchor(BLOCK)


def test_nothing_is_mapped_before_the_commit_and_an_abort_gives_the_space_back() -> None:
    image = Image()
    free = image.writer.space.free_bytes
    plan = image.write(0, 3 * MIB)
    assert image.entry() == (State.NOT_PRESENT, 0)
    assert image.writer.space.free_bytes == free - 3 * MIB
    image.writer.abort(plan, touched=True)
    assert image.writer.space.free_bytes == free
    assert image.write(0, 4096).barrier, "what was touched is stale"


def test_neighbouring_blocks_are_one_piece() -> None:
    plan = Image().write(MIB // 2, 2 * MIB)
    assert plan.payload == [Piece(MIB // 2, 2 * MIB, 6 * MIB + MIB // 2)]


def test_a_plan_without_room_takes_nothing_and_says_so() -> None:
    image = Image()
    free = image.writer.space.free_bytes
    assert image.writer.plan_write(0, 20 * MIB) == NeedsRoom(MIB, 10 * MIB)
    assert image.writer.space.free_bytes == free


def test_a_plan_asks_for_all_pages_of_its_range_at_once() -> None:
    image = Image(size=GIB)
    image.store.clear()
    assert image.writer.plan_write(0, GIB) == Missing([(BAT, 2 * PAGE)])  # type: ignore[list-item]


def test_a_damaged_block_is_refused_and_nothing_is_kept() -> None:
    image = Image(State.FULLY_PRESENT, 50 * MIB)
    free = image.writer.space.free_bytes
    with pytest.raises(CorruptImage):
        image.writer.plan_write(0, 2 * MIB)
    assert image.writer.space.free_bytes == free


# Differencing images


def test_part_of_the_parents_block_needs_a_sector_bitmap() -> None:
    assert Image(differencing=True).writer.plan_write(0, 4096) == NeedsBitmap(0)


def test_part_of_the_parents_block_becomes_partially_present_with_old_bits_cleared() -> None:
    image = child(State.NOT_PRESENT, bits=b"\xff" * 256)
    plan = image.write(8 * 512, 16 * 512)
    assert (plan.barrier, plan.exclusive, plan.zeros, plan.copies) == (True, True, [], [])
    image.writer.commit(plan)
    assert image.entry() == (State.PARTIALLY_PRESENT, 6 * MIB)
    assert image.sector_bits() == b"\0\xff\xff".ljust(256, b"\0")


def test_a_whole_block_needs_no_bits_but_a_barrier() -> None:
    image = child(State.NOT_PRESENT)
    plan = image.write(0, MIB)
    assert (plan.barrier, plan.runs) == (True, [])
    image.writer.commit(plan)
    assert image.entry()[0] == State.FULLY_PRESENT


@pytest.mark.parametrize("state", [State.UNDEFINED, State.ZERO, State.UNMAPPED])
def test_part_of_a_zero_block_hides_the_parent_altogether(state: int) -> None:
    image = child(state)
    plan = image.write(0, 512)
    assert (plan.barrier, plan.runs) == (False, [])
    image.writer.commit(plan)
    assert image.entry()[0] == State.FULLY_PRESENT


def test_sectors_that_are_cut_keep_their_other_bytes() -> None:
    plan = child(State.NOT_PRESENT).write(700, 1000)
    assert plan.copies == [Piece(512, 188, 6 * MIB + 512), Piece(1700, 348, 6 * MIB + 1700)]
    plan = child(State.PARTIALLY_PRESENT, BLOCK, b"\2").write(700, 1000)
    assert plan.copies == [Piece(1700, 348, BLOCK + 1700)]
    assert plan.exclusive


def test_sectors_that_are_present_are_overwritten_without_an_edit() -> None:
    plan = child(State.PARTIALLY_PRESENT, BLOCK, b"\xff").write(100, 3000)
    assert (plan.runs, plan.barrier, plan.exclusive, plan.copies) == ([], False, False, [])


def test_new_sectors_of_a_partial_block_share_it_and_have_a_barrier() -> None:
    image = child(State.PARTIALLY_PRESENT, BLOCK, b"\x0f")
    plan = image.write(2048, 1024)
    assert (plan.barrier, plan.exclusive) == (True, False)
    image.writer.commit(plan)
    assert image.sector_bits()[0] == 0x3F


def test_a_block_whose_sectors_are_all_here_becomes_fully_present() -> None:
    image = child(State.PARTIALLY_PRESENT, BLOCK, b"\xff" * 255)
    image.writer.commit(image.write(255 * 8 * 512, 4096))
    assert image.entry() == (State.FULLY_PRESENT, BLOCK)


# Zeros and discards


def zero(image: Image, offset: int, length: int, *, unmap: bool = True) -> Plan:
    plan = image.writer.plan_zero(offset, length, unmap=unmap)
    assert isinstance(plan, Plan)
    return plan


def discard(image: Image, offset: int, length: int) -> Plan:
    plan = image.writer.plan_discard(offset, length)
    assert isinstance(plan, Plan)
    return plan


def test_a_whole_block_gives_its_space_back_when_that_is_wanted() -> None:
    image = Image(State.FULLY_PRESENT, BLOCK)
    plan = zero(image, 0, MIB)
    assert (plan.released, plan.zeros, plan.exclusive) == ([(BLOCK, MIB)], [], True)
    image.writer.commit(plan)
    assert image.entry() == (State.ZERO, 0)
    assert image.edits.freeze().released == [(BLOCK, MIB)]


@pytest.mark.parametrize(("unmap", "fixed"), [(False, False), (True, True)])
def test_a_whole_block_keeps_its_space_otherwise(unmap: bool, fixed: bool) -> None:
    plan = zero(Image(State.FULLY_PRESENT, BLOCK, fixed=fixed), 0, MIB, unmap=unmap)
    assert (plan.released, plan.zeros, plan.pages) == ([], [(BLOCK, MIB)], set())


def test_what_reads_as_zeros_already_is_left_alone() -> None:
    assert zero(Image(State.NOT_PRESENT), 0, 5 * MIB).changes_nothing
    assert zero(Image(State.ZERO), 100, 200).changes_nothing


@pytest.mark.parametrize("state", [State.UNDEFINED, State.UNMAPPED])
def test_what_others_may_read_as_anything_becomes_zero(state: int) -> None:
    image = Image(state, BLOCK, anchors=frozenset({BLOCK}))
    plan = zero(image, 100, 200)
    assert plan.released == [(BLOCK, MIB)]
    image.writer.commit(plan)
    assert image.entry() == (State.ZERO, 0)


@pytest.mark.parametrize("state", [State.NOT_PRESENT, State.PARTIALLY_PRESENT, State.FULLY_PRESENT])
@pytest.mark.parametrize("change", [zero, discard])
def test_a_childs_block_becomes_zero_and_never_the_parents(
    change: Callable[[Image, int, int], Plan], state: int
) -> None:
    image = child(state, BLOCK if state else 0)
    plan = change(image, 0, MIB)
    image.writer.commit(plan)
    assert image.entry() == (State.ZERO, 0)


def test_part_of_a_childs_block_is_zeroed_by_its_bits() -> None:
    image = child(State.PARTIALLY_PRESENT, BLOCK)
    plan = zero(image, 512, 1024)
    assert (plan.zeros, plan.barrier) == ([(BLOCK + 512, 1024)], True)
    image.writer.commit(plan)
    assert image.sector_bits()[0] == 6


def test_a_discard_within_a_block_is_a_hint_for_the_host() -> None:
    plan = discard(Image(State.FULLY_PRESENT, BLOCK), 4096, 8192)
    assert (plan.holes, plan.pages, plan.released) == ([(BLOCK + 4096, 8192)], set(), [])


def test_a_fixed_image_keeps_everything() -> None:
    assert discard(Image(State.FULLY_PRESENT, BLOCK, fixed=True), 0, MIB).changes_nothing


def test_the_last_block_is_whole_when_the_disks_part_of_it_is() -> None:
    image = Image(State.FULLY_PRESENT, BLOCK, size=300 * KIB)
    assert discard(image, 0, 300 * KIB).released == [(BLOCK, MIB)]


# Pages and bits


def test_a_page_stays_in_memory_until_it_is_in_its_place() -> None:
    image = Image()
    edits = image.edits
    image.writer.commit(image.write(0, 4096))
    batch = edits.freeze()
    image.writer.commit(image.write(MIB, 4096))
    edits.logged(batch)
    waiting = edits.unapplied
    for at in range(0, 4000 * PAGE, PAGE):
        image.store.put(1 << 40 | at, b"")
    edits.applied(waiting)
    assert image.entry(1)[0] == State.FULLY_PRESENT, "it was edited again"
    second = edits.freeze()
    edits.logged(second)
    edits.applied(edits.unapplied)
    for at in range(0, 4000 * PAGE, PAGE):
        image.store.put(1 << 40 | at, b"")
    assert image.store.get(BAT) is None


def test_a_batch_that_could_not_be_logged_is_part_of_the_next() -> None:
    image = Image(State.FULLY_PRESENT, BLOCK)
    image.writer.commit(zero(image, 0, MIB))
    batch = image.edits.freeze()
    image.writer.commit(image.write(MIB, 4096))
    newest = image.store.get(BAT)
    image.edits.thaw(batch)
    again = image.edits.freeze()
    assert again.pages == {BAT: newest}
    assert again.released == batch.released


def test_room_in_a_batch_is_reserved_and_given_back() -> None:
    edits = Image().edits
    assert edits.try_reserve(60)
    assert not edits.try_reserve(50)
    edits.unreserve(60)
    assert edits.try_reserve(100)
    with pytest.raises(ValueError, match="larger"):
        edits.try_reserve(101)


def test_bits_are_set_cleared_and_tested_as_a_model_says() -> None:
    chance = random.Random(9)
    data, model = bytearray(64), [False] * 512
    for _ in range(3000):
        first = chance.randrange(512)
        count = chance.randint(1, min(512 - first, chance.choice((3, 9, 200))))
        kind = chance.randrange(3)
        if kind == 2:
            assert all_set(data, first, count) is all(model[first : first + count])
            continue
        (set_bits if kind else clear_bits)(data, first, count)
        model[first : first + count] = [bool(kind)] * count
        assert [bool(data[bit >> 3] >> (bit & 7) & 1) for bit in range(512)] == model
