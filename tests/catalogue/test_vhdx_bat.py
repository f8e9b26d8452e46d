"""Bad inputs, cases B1 to B23: the block allocation table and the sector bitmaps."""

from pathlib import Path

import pytest

from tests.support.catalogue import (
    OWN,
    Catalogue,
    Make,
    Opens,
    Refused,
    judge_commands,
    judge_library,
    numbers,
)
from tests.support.subject import Subject, filled
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Block, Parts, State, Vhdx
from tests.support.vhdx.model import pattern
from tests.support.vhdx.records import GIB, KIB, MIB, TIB, Region

CASES = Catalogue("B", numbers(23))

FULL = State.FULLY_PRESENT
EVERY_BIT = b"\xff" * (MIB // 512 // 8)


def place(subject: Subject, block: int) -> int:
    """Return where a block lies in the file."""
    return subject.parts.state(block) & ~0xFFFFF


def child_of_base(subject: Subject) -> Parts:
    """Start from a child that has a part of block 1 and all of block 5."""
    chain = subject.chain()
    chain.child([(MIB + 512, 1024), (5 * MIB, MIB)])
    subject.use(chain)
    subject.written = False
    subject.parts = chain.top.vhdx.assemble()
    return subject.parts


def _reserved_state(state: int) -> Make:
    def make(subject: Subject) -> None:
        subject.parts.set_entry(1, state, place(subject, 1))
        subject.lose(1)

    return make


CASES.add("B1-4", Opens(OWN))(_reserved_state(4))
CASES.add("B1-5", Opens(OWN))(_reserved_state(5))


@CASES.add("B2", Opens(OWN, read_only=True))
def reserved_bits(subject: Subject) -> None:
    subject.parts.set_entry(1, FULL | 0xFFFF8, place(subject, 1))


@CASES.add("B3", Opens(OWN))
def present_at_offset_zero(subject: Subject) -> None:
    subject.parts.set_entry(1, FULL, 0)
    subject.lose(1)


def _inside(name: str) -> Make:
    def make(subject: Subject) -> None:
        parts = subject.parts
        extra = parts.append(MIB)
        for table in parts.tables:
            table.regions.append(Region(subject.vhdx.disk_id, extra, MIB, 0))
        places = {"log": parts.log_offset, "metadata": parts.metadata_offset, "bat": parts.bat_offset}
        parts.set_entry(1, FULL, (places | {"unknown-region": extra})[name])
        subject.lose(1)

    return make


for _name in ("log", "metadata", "bat", "unknown-region"):
    CASES.add(f"B4-{_name}", Opens(OWN, read_only=True))(_inside(_name))


@CASES.add("B4-tail", Opens(OWN, read_only=True))
def tail_of_a_block_inside_the_log(subject: Subject) -> None:
    vhdx = Vhdx(block_size=2 * MIB, order=("payload", "log", "metadata", "bat"))
    vhdx.blocks = {0: filled(1, 0, 2 * MIB), 1: filled(2, 1, 2 * MIB)}
    parts = subject.rebuild(vhdx)
    parts.set_entry(1, FULL, parts.log_offset - MIB)
    subject.lose(1)


@CASES.add("B5", Opens(OWN, read_only=True))
def beyond_the_end(subject: Subject) -> None:
    subject.parts.set_entry(1, FULL, 100 * MIB)
    subject.lose(1)


@CASES.add("B5-at-the-end", Opens(OWN, read_only=True))
def just_beyond_the_end(subject: Subject) -> None:
    subject.parts.set_entry(1, FULL, subject.parts.length)
    subject.lose(1)


@CASES.add("B6", Opens(OWN, read_only=True))
def half_beyond_the_end(subject: Subject) -> None:
    subject.parts.length -= MIB // 2
    subject.lose(2)


@CASES.add("B7", Opens(OWN))
def only_the_padding_beyond_the_end(subject: Subject) -> None:
    vhdx = Vhdx(size=5 * MIB, block_size=2 * MIB, fixed=True)
    vhdx.blocks = {number: filled(number + 1, number, 2 * MIB) for number in range(3)}
    subject.rebuild(vhdx)
    subject.parts.length -= MIB


@CASES.add("B8", Opens(OWN, read_only=True))
def offset_2_to_the_63(subject: Subject) -> None:
    subject.parts.set_entry(1, FULL, 1 << 63)
    subject.lose(1)


@CASES.add("B8-most", Opens(OWN, read_only=True))
def greatest_offset(subject: Subject) -> None:
    subject.parts.set_entry(1, FULL, 2**64 - MIB)
    subject.lose(1)


@CASES.add("B9", Opens(OWN, read_only=True))
def two_blocks_in_one_place(subject: Subject) -> None:
    subject.parts.set_entry(1, FULL, place(subject, 0))
    subject.model.write(MIB, subject.model.read(0, MIB))


@CASES.add("B10", Opens(OWN, read_only=True))
def two_blocks_overlap_by_half(subject: Subject) -> None:
    first = Block(FULL, pattern(1, 0, 2 * MIB))
    parts = subject.rebuild(Vhdx(block_size=2 * MIB, blocks={0: first, 4: filled(9, 4, 2 * MIB)}))
    parts.set_entry(2, FULL, place(subject, 0) + MIB)
    subject.model.write(4 * MIB, first.data[MIB:])
    subject.model.write(5 * MIB, filled(9, 4, 2 * MIB).data)


@CASES.add("B11", Opens(OWN, read_only=True))
def partially_present_without_parent(subject: Subject) -> None:
    subject.parts.set_entry(1, State.PARTIALLY_PRESENT, place(subject, 1))


@CASES.add("B12", Opens(OWN))
def absent_blocks_with_offsets(subject: Subject) -> None:
    room = subject.parts.append(2 * MIB)
    subject.parts.patches.append((room, b"\xbd" * 2 * MIB))
    subject.parts.set_entry(4, State.NOT_PRESENT, room)
    subject.parts.set_entry(5, State.ZERO, room + MIB)


@CASES.add("B13", Opens(OWN))
def anchor_on_a_live_block(subject: Subject) -> None:
    subject.parts.set_entry(4, State.UNMAPPED, place(subject, 1))
    subject.parts.set_entry(5, State.UNDEFINED, place(subject, 2))


@CASES.add("B14", Opens(OWN))
def junk_in_bitmap_slots_without_parent(subject: Subject) -> None:
    blocks = {number: Block(FULL, pattern(number + 1, number * 256 * MIB, MIB)) for number in (0, 15, 16, 17)}
    parts = subject.rebuild(Vhdx(size=5 * GIB, block_size=256 * MIB, blocks=blocks))
    parts.bat[subject.vhdx.bitmap_index(0)] = place(subject, 0) | FULL


@CASES.add("B15", Opens(OWN, read_only=True))
def partially_present_without_bitmap(subject: Subject) -> None:
    parts = child_of_base(subject)
    parts.bat[subject.vhdx.bitmap_index(0)] = 0
    subject.lose(1)


def _bitmap_state(state: int) -> Make:
    def make(subject: Subject) -> None:
        parts = child_of_base(subject)
        index = subject.vhdx.bitmap_index(0)
        parts.bat[index] = parts.bat[index] & ~7 | state
        subject.lose(1)

    return make


for _state in (1, 2, 3, 4, 5, 7):
    CASES.add(f"B16-{_state}", Opens(OWN))(_bitmap_state(_state))


@CASES.add("B16-other-chunk", Opens(OWN))
def bitmap_state_invalid_in_one_chunk(subject: Subject) -> None:
    chain = Chain(subject.folder)
    chain.base([(0, MIB), (4 * GIB, MIB)], size=6 * GIB, block_size=256 * MIB)
    chain.child([(512, 512), (4 * GIB + 512, 512)])
    subject.use(chain)
    subject.written = False
    subject.parts = chain.top.vhdx.assemble()
    subject.parts.bat[chain.top.vhdx.bitmap_index(1)] |= 7
    subject.lose(16)


@CASES.add("B16-beyond-the-end", Opens(("B5",)))
def bitmap_beyond_the_end(subject: Subject) -> None:
    parts = child_of_base(subject)
    parts.bat[subject.vhdx.bitmap_index(0)] = 1 << 50 | 6
    subject.lose(1)


@CASES.add("B16-offset-zero", Opens(("B3",)))
def bitmap_at_offset_zero(subject: Subject) -> None:
    parts = child_of_base(subject)
    parts.bat[subject.vhdx.bitmap_index(0)] = 6
    subject.lose(1)


@CASES.add("B17", Opens(OWN, read_only=True))
def bitmap_over_a_payload_block(subject: Subject) -> None:
    chain = subject.chain()
    whole = Block(FULL, b"\xff" * MIB)
    vhdx = chain.describe_child()
    vhdx.blocks = {1: Block(State.PARTIALLY_PRESENT, pattern(8, MIB, MIB), EVERY_BIT), 5: whole}
    subject.vhdx = vhdx
    subject.parts = vhdx.assemble()
    subject.parts.bat[vhdx.bitmap_index(0)] = place(subject, 5) | 6
    subject.model = vhdx.see(chain.top.model.copy())


@CASES.add("B18", Opens(clean=True))
def bits_past_the_end_of_the_disk(subject: Subject) -> None:
    chain = subject.chain(size=3 * MIB + 64 * KIB)
    vhdx = chain.describe_child()
    vhdx.blocks = {3: Block(State.PARTIALLY_PRESENT, pattern(8, 3 * MIB, MIB), b"\x0f" + EVERY_BIT[1:])}
    subject.vhdx = vhdx
    subject.parts = vhdx.assemble()
    subject.model = vhdx.see(chain.top.model.copy())


@CASES.add("B19", Opens(clean=True))
def stale_bits_where_none_are_asked(subject: Subject) -> None:
    chain = subject.chain()
    vhdx = chain.describe_child()
    vhdx.blocks = {
        0: Block(State.NOT_PRESENT, b"", EVERY_BIT),
        1: Block(FULL, pattern(8, MIB, MIB), bytes(256)),
        2: Block(State.ZERO, b"", EVERY_BIT),
        3: Block(State.PARTIALLY_PRESENT, pattern(8, 3 * MIB, MIB), b"\x81" + bytes(255)),
    }
    subject.vhdx = vhdx
    subject.parts = vhdx.assemble()
    subject.model = vhdx.see(chain.top.model.copy())


@CASES.add("B20", Opens(OWN))
def entries_past_the_last_index(subject: Subject) -> None:
    for index in (subject.vhdx.bat_entries, subject.vhdx.bat_entries + 5, MIB // 8 - 1):
        subject.parts.bat[index] = place(subject, 0) | FULL


@CASES.add("B21", Opens(clean=True))
def trailing_512_bytes(subject: Subject) -> None:
    subject.parts.patches.append((subject.parts.length, b"t" * 512))
    subject.parts.length += 512


@CASES.add("B22", Opens())
def trailing_garbage(subject: Subject) -> None:
    room = subject.parts.append(20 * MIB)
    subject.parts.patches.append((room, b"garbage " * MIB))


@CASES.add("B23", Opens(clean=True))
def largest_bat(subject: Subject) -> None:
    blocks = {0: filled(1, 0), 2**25: filled(2, 2**25), 2**26 - 1: filled(3, 2**26 - 1)}
    subject.rebuild(Vhdx(size=64 * TIB, blocks=blocks))


def test_every_number_of_the_section_has_a_case() -> None:
    assert CASES.missing() == []


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_library_does_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_library(make, wanted, tmp_path)


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_commands_do_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_commands(make, wanted, tmp_path)
