"""Lookups: geometry, states, bitmaps, damaged blocks, rows B1 to B19."""

import random
from itertools import pairwise

import pytest

from tests.support.small_vhdx import (
    BAT,
    BAT_AT,
    FULLY,
    LOCATOR,
    METADATA,
    METADATA_AT,
    MIB,
    PARTLY,
    PAYLOAD_AT,
    MemoryFile,
    Small,
    extents,
    load,
    locator,
    region_entry,
    summary,
)
from vblk.codec.bits import bit_runs
from vblk.errors import CorruptImage, Reason
from vblk.extent import Kind, Missing
from vblk.formats.vhdx.bat import Geometry, is_progression

PARENT = locator({"parent_linkage": "{00112233-4455-6677-8899-aabbccddeeff}", "relative_path": ".\\p.vhdx"})


def differencing(**own: object) -> Small:
    small = Small(bits=2, extra_items={LOCATOR: PARENT})
    for name, value in own.items():
        setattr(small, name, value)
    return small


def at(block: int, state: int = FULLY) -> int:
    return (PAYLOAD_AT + block * MIB) | state


@pytest.mark.parametrize(("differs", "entries", "bitmaps"), [(False, 10242, 3), (True, 12291, 3)])
def test_the_bat_interleaves_bitmap_entries(differs: bool, entries: int, bitmaps: int) -> None:
    geometry = Geometry(10 << 30, MIB, 512, differs, BAT_AT, MIB)
    assert (geometry.chunk_ratio, geometry.payload_blocks) == (4096, 10240)
    assert (geometry.entries, geometry.bitmap_blocks) == (entries, bitmaps)
    assert [geometry.payload_index(block) for block in (0, 4095, 4096, 10239)] == [0, 4095, 4097, 10241]
    assert [geometry.bitmap_index(chunk) for chunk in (0, 1)] == [4096, 8193]


@pytest.mark.parametrize(
    ("block_size", "sector", "ratio"),
    [(MIB, 512, 4096), (MIB, 4096, 32768), (256 * MIB, 512, 16), (256 * MIB, 4096, 128)],
)
def test_the_chunk_ratio(block_size: int, sector: int, ratio: int) -> None:
    assert Geometry(1 << 40, block_size, sector, False, BAT_AT, MIB).chunk_ratio == ratio


@pytest.mark.parametrize(
    ("state", "kind"), [(0, Kind.ABSENT), (1, Kind.ZERO), (2, Kind.ZERO), (3, Kind.ZERO), (FULLY, Kind.DATA)]
)
@pytest.mark.parametrize("parent", [False, True])
def test_every_state_reads_as_the_specification_says(state: int, kind: Kind, parent: bool) -> None:
    small = differencing() if parent else Small()
    small.entries = {0: at(1, state)}
    file = small.build()
    found = extents(file, load(file), 512, MIB - 512)
    place = PAYLOAD_AT + MIB + 512 if kind is Kind.DATA else None
    assert summary(found) == [(kind, 512, MIB - 512, place)]


def test_neighbours_in_guest_and_file_are_one_extent() -> None:
    file = Small(entries={0: at(0), 1: at(1), 2: at(3), 3: 2}, length=9 * MIB).build()
    assert summary(extents(file, load(file), 0, 4 * MIB)) == [
        (Kind.DATA, 0, 2 * MIB, PAYLOAD_AT),
        (Kind.DATA, 2 * MIB, MIB, PAYLOAD_AT + 3 * MIB),
        (Kind.ZERO, 3 * MIB, MIB, None),
    ]


def test_b19_a_bitmap_is_consulted_for_partial_blocks_only() -> None:
    small = differencing(entries={0: at(1), 1: 0, 2: at(2, PARTLY), 4096: at(0)})
    small.pieces[PAYLOAD_AT] = b"\xff" * 512 + bytes(256) + b"\xff" * 1000
    file = small.build()
    assert summary(extents(file, load(file), 0, 4 * MIB)) == [
        (Kind.DATA, 0, MIB, PAYLOAD_AT + MIB),
        (Kind.ABSENT, MIB, 3 * MIB, None),
    ]


@pytest.mark.parametrize("sector", [512, 4096])
def test_partial_blocks_equal_a_model_at_every_alignment(sector: int) -> None:
    chance = random.Random(sector)
    bits = MIB // sector
    first = bytes(chance.choice((0, 0xFF, chance.randrange(256))) for _ in range(2 * bits // 8))
    small = differencing(logical=sector, entries={0: at(1, PARTLY), 1: at(2, PARTLY)})
    small.entries[(1 << 23) * sector // MIB] = at(0)
    small.pieces[PAYLOAD_AT] = first
    file = small.build()
    image = load(file)
    for _ in range(100):
        low, high = sorted(chance.sample(range(2 * MIB), 2))
        if chance.random() < 0.3:
            high = min(low + chance.randrange(1, 2 * sector), 2 * MIB)
        guest = low
        for extent in extents(file, image, low, high - low):
            assert extent.guest_offset == guest
            assert extent.length > 0
            for probe in (guest, guest + extent.length // 2, guest + extent.length - 1):
                held = first[probe // sector // 8] >> (probe // sector % 8) & 1
                assert extent.kind is (Kind.DATA if held else Kind.ABSENT)
                if extent.file_offset is not None:
                    assert extent.file_offset - extent.guest_offset == PAYLOAD_AT + MIB
            guest += extent.length
        assert guest == high


def test_bit_runs_equal_a_walk_over_the_bits() -> None:
    chance = random.Random(1)
    for _ in range(300):
        data = bytes(chance.choice((0, 0, 255, 255, chance.randrange(256))) for _ in range(20))
        first = chance.randrange(150)
        count = chance.randrange(1, 160 - first + 1)
        flat = [bit for bit, length in bit_runs(data, first, count) for _ in range(length)]
        assert flat == [bool(data[n // 8] >> (n % 8) & 1) for n in range(first, first + count)]
        runs = list(bit_runs(data, first, count))
        assert all(a[0] is not b[0] for a, b in pairwise(runs))


def test_a_lookup_names_all_bat_pages_at_once_then_all_bitmap_pages() -> None:
    small = differencing(size=5000 * MIB, entries={0: at(1, PARTLY), 4999 + 1: at(2, PARTLY)})
    small.entries |= {4096: at(0), 8193: at(3)}
    file = small.build()
    image = load(file)
    pages: dict[int, bytes] = {}
    rounds: list[list[tuple[int, int]]] = []
    while True:
        answer = image.lookup(0, image.virtual_size, pages)
        if not isinstance(answer, Missing):
            break
        rounds.append([(start, length) for start, length in answer.ranges])
        for start, length in answer.ranges:
            data = file.at(start, length)
            pages |= {start + at: data[at : at + 4096] for at in range(0, length, 4096)}
    assert rounds == [
        [(BAT_AT, 10 * 4096), (BAT_AT + 8193 * 8 // 4096 * 4096, 4096)],
        [(PAYLOAD_AT, 4096), (PAYLOAD_AT + 3 * MIB + (4999 - 4096) * 256 // 4096 * 4096, 4096)],
    ]


DAMAGE = [
    pytest.param(4, Reason.BAD_VALUE, id="B1-4"),
    pytest.param(5 | PAYLOAD_AT, Reason.BAD_VALUE, id="B1-5"),
    pytest.param(FULLY, Reason.BAD_VALUE, id="B3"),
    pytest.param(MIB | FULLY, Reason.OVERLAP, id="B4-log"),
    pytest.param(METADATA_AT | FULLY, Reason.OVERLAP, id="B4-metadata"),
    pytest.param(BAT_AT | FULLY, Reason.OVERLAP, id="B4-bat"),
    pytest.param(1 << 40 | FULLY, Reason.OUT_OF_FILE, id="B5"),
    pytest.param(8 * MIB | FULLY, Reason.OUT_OF_FILE, id="B6"),
    pytest.param(1 << 63 | FULLY, Reason.OUT_OF_FILE, id="B8"),
    pytest.param((1 << 64) - MIB | FULLY, Reason.OUT_OF_FILE, id="B8-most"),
]


@pytest.mark.parametrize(("entry", "reason"), DAMAGE)
def test_a_damaged_block_is_an_error_and_its_neighbours_are_not(entry: int, reason: Reason) -> None:
    file = Small(entries={0: at(0), 1: entry, 2: at(1)}, length=8 * MIB + 512).build()
    image = load(file)
    with pytest.raises(CorruptImage) as caught:
        extents(file, image, MIB + 5, 1)
    assert caught.value.reason is reason
    assert caught.value.offset == BAT_AT + 8
    assert "block 1" in str(caught.value)
    assert image.locate(MIB, 1, {BAT_AT: file.at(BAT_AT, 4096)}) is None
    assert summary(extents(file, image, 0, MIB)) == [(Kind.DATA, 0, MIB, PAYLOAD_AT)]
    assert summary(extents(file, image, 2 * MIB, MIB)) == [(Kind.DATA, 2 * MIB, MIB, PAYLOAD_AT + MIB)]


def test_b4_a_block_in_an_unknown_region_is_damaged() -> None:
    other = region_entry(b"\x99" * 16, 6 * MIB, flags=0)
    regions = (region_entry(BAT, BAT_AT), region_entry(METADATA, METADATA_AT), other)
    file = Small(regions=regions, entries={0: 6 * MIB | FULLY}).build()
    with pytest.raises(CorruptImage):
        extents(file, load(file), 0, 1)


def test_b7_the_last_block_may_miss_what_the_disk_does_not_have() -> None:
    file = Small(size=MIB + 512, entries={1: 7 * MIB | FULLY}, length=7 * MIB + 512).build()
    assert summary(extents(file, load(file), MIB, 512)) == [(Kind.DATA, MIB, 512, 7 * MIB)]
    short = MemoryFile(file.pieces, 7 * MIB + 511)
    with pytest.raises(CorruptImage):
        extents(short, load(short), MIB, 512)


def test_b11_partially_present_without_a_parent_is_fully_present() -> None:
    file = Small(entries={0: at(0, PARTLY)}).build()
    assert summary(extents(file, load(file), 0, MIB)) == [(Kind.DATA, 0, MIB, PAYLOAD_AT)]


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        pytest.param(0, Reason.MISSING_ITEM, id="B15"),
        *(pytest.param(at(0, state), Reason.BAD_VALUE, id=f"B16-{state}") for state in (1, 2, 3, 4, 5, 7)),
        pytest.param(FULLY, Reason.BAD_VALUE, id="B3-bitmap"),
        pytest.param(BAT_AT | FULLY, Reason.OVERLAP, id="B4-bitmap"),
        pytest.param(1 << 50 | FULLY, Reason.OUT_OF_FILE, id="B5-bitmap"),
    ],
)
def test_a_damaged_bitmap_is_an_error_for_partial_blocks_only(slot: int, reason: Reason) -> None:
    file = differencing(entries={0: at(1, PARTLY), 1: at(2), 4096: slot}).build()
    image = load(file)
    with pytest.raises(CorruptImage) as caught:
        extents(file, image, 0, 1)
    assert caught.value.reason is reason
    assert caught.value.offset == BAT_AT + 4096 * 8
    assert summary(extents(file, image, MIB, MIB)) == [(Kind.DATA, MIB, MIB, PAYLOAD_AT + 2 * MIB)]


def test_locate_agrees_with_lookup_wherever_it_answers() -> None:
    chance = random.Random(11)
    entries = {
        block: chance.choice((0, 2, at(block), at(3 - block), at(block) | 8, 5, 1 << 63 | FULLY))
        for block in range(4)
    }
    file = Small(entries=entries).build()
    image = load(file)
    pages = {BAT_AT: file.at(BAT_AT, 4096)}
    assert image.locate(0, 1, {}) is None
    answered = 0
    for _ in range(500):
        start = chance.randrange(4 * MIB)
        length = min(chance.choice((1, 512, MIB)), 4 * MIB - start)
        place = image.locate(start, length, pages)
        if place is not None:
            answered += 1
            assert summary(extents(file, image, start, length)) == [(Kind.DATA, start, length, place)]
    assert answered


def test_locate_finds_a_plain_block_in_a_later_chunk() -> None:
    small = Small(size=5000 * MIB, entries={4096 + 1: at(2)})
    file = small.build()
    image = load(file)
    pages = {start: file.at(start, 4096) for start in range(BAT_AT, BAT_AT + 16 * 4096, 4096)}
    assert image.locate(4096 * MIB + 7, 9, pages) == PAYLOAD_AT + 2 * MIB + 7
    assert image.locate(4096 * MIB + 7, MIB, pages) is None


def test_b2_reserved_bits_do_not_stop_reading() -> None:
    file = Small(entries={0: at(0) | 0xFFFF8}).build()
    assert summary(extents(file, load(file), 0, MIB)) == [(Kind.DATA, 0, MIB, PAYLOAD_AT)]


def test_a_contiguous_run_is_recognised_and_nothing_else() -> None:
    def raw(*entries: int) -> bytes:
        return b"".join(entry.to_bytes(8, "little") for entry in entries)

    assert is_progression(raw(6, 6 + MIB, 6 + 2 * MIB), MIB)
    assert not is_progression(raw(6, 6 + 2 * MIB, 6 + 2 * MIB), MIB)
    assert not is_progression(raw(6, 6, 6), MIB)


def test_b23_a_disk_of_64_tib_costs_a_step_for_each_page_of_equal_entries() -> None:
    small = Small(
        size=64 << 40,
        length=600 * MIB,
        regions=(region_entry(BAT, BAT_AT, 513 * MIB), region_entry(METADATA, METADATA_AT)),
    )
    image = load(small.build())
    zeros = bytes(4096)

    class AllZero:
        asked = 0

        def get(self, file_offset: int, /) -> bytes:
            AllZero.asked += 1
            return zeros

    assert image.lookup_step // MIB * 8 == MIB
    found = image.lookup(0, image.lookup_step, AllZero())
    assert isinstance(found, list)
    assert summary(found) == [(Kind.ABSENT, 0, image.lookup_step, None)]
    assert AllZero.asked <= 257 + 1
