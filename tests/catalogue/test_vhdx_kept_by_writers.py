"""What a writer must keep, must not show and must not trip over, case by case of the catalogue.

Opened for writing, written to, grown: unknown regions and items stay where and
what they are; bytes that lie about in the file are never anybody's; identities
change when they must, and only then.
"""

import asyncio
import os
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

import vblk
from tests.catalogue import (
    test_vhdx_bat,
    test_vhdx_headers,
    test_vhdx_log,
    test_vhdx_regions,
)
from tests.support.catalogue import Make, windows
from tests.support.command_line import call, good
from tests.support.filesystems import mounted
from tests.support.subject import Journal, Subject, filled
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.journal import Page
from tests.support.vhdx.model import pattern
from tests.support.vhdx.records import (
    BAT_REGION,
    HEADER_OFFSETS,
    IS_USER,
    IS_VIRTUAL_DISK,
    KIB,
    METADATA_REGION,
    MIB,
    TABLE_OFFSETS,
    Item,
    Region,
    seal,
)
from vblk.errors import BlockError

UNKNOWN = UUID("12345678-1234-5678-1234-567812345678")
OTHER = UUID("87654321-1234-5678-1234-567812345678")

Use = Callable[[vblk.Disk, Subject], Awaitable[None]]


def use(subject: Subject, work: Use) -> None:
    """Do something to the disk, and see that it reads as its model before, after, and when opened anew."""

    async def main() -> None:
        async with vblk.open(subject.write(), format="vhdx", read_only=False, rules=subject.rules) as disk:
            await compare(disk, subject)
            await work(disk, subject)
            await compare(disk, subject)
        async with vblk.open(subject.path, format="vhdx", rules=subject.rules) as disk:
            await compare(disk, subject)

    asyncio.run(main())


async def compare(disk: vblk.Disk, subject: Subject) -> None:
    assert disk.size == subject.model.size
    for at, length in windows(subject):
        assert await disk.read(at, length) == subject.model.read(at, length), f"wrong bytes from {at:#x}"


async def write(disk: vblk.Disk, subject: Subject, offset: int, length: int) -> None:
    data = pattern(offset + 5, offset, length)
    await disk.write(offset, data)
    subject.model.write(offset, data)


async def grow(disk: vblk.Disk, subject: Subject, size: int) -> None:
    await disk.resize(size)
    subject.model = subject.model.copy(size)


async def write_parts_of_all_blocks(disk: vblk.Disk, subject: Subject) -> None:
    for at in range(0, disk.size, MIB):
        await write(disk, subject, at + 64 * KIB, 4 * KIB)


def entry(path: Path, subject: Subject, block: int) -> int:
    """Return a block's BAT entry as the file has it; the BAT was not moved."""
    at = subject.parts.bat_offset + 8 * subject.vhdx.payload_index(block)
    return int(struct.unpack("<Q", _bytes(path, at, 8))[0])


def _bytes(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def tables(path: Path) -> list[dict[UUID, tuple[int, int, int]]]:
    """Return both region tables, whose checksums are right, as {guid: (offset, length, flags)}."""
    found: list[dict[UUID, tuple[int, int, int]]] = []
    for at in TABLE_OFFSETS:
        raw = _bytes(path, at, 65536)
        assert raw == seal(raw, None)
        (count,) = struct.unpack_from("<I", raw, 8)
        entries = [struct.unpack_from("<16sQII", raw, 16 + 32 * index) for index in range(count)]
        found.append(
            {UUID(bytes_le=guid): (offset, length, flags) for guid, offset, length, flags in entries}
        )
    return found


@pytest.mark.parametrize("table_moves", [False, True])
def test_t8_an_unknown_region_is_kept_by_writing_and_growing(tmp_path: Path, table_moves: bool) -> None:
    subject = Subject(tmp_path)
    room = subject.parts.append(2 * MIB)
    content = pattern(99, 0, 2 * MIB)
    subject.parts.patches.append((room, content))
    for table in subject.parts.tables:
        table.regions.insert(0, Region(UNKNOWN, room, 2 * MIB, 0))

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await write_parts_of_all_blocks(disk, subject)
        if table_moves:
            await disk.resize(200 << 30)
            await disk.write_zeroes(0, 16 * MIB, unmap=True)
            await disk.flush()
            await disk.resize(16 * MIB)
            subject.model.zero(0, 16 * MIB)
        await write_parts_of_all_blocks(disk, subject)

    use(subject, work)
    first, second = tables(subject.path)
    assert first == second
    assert first[UNKNOWN] == (room, 2 * MIB, 0)
    assert (first[BAT_REGION][0] != subject.parts.bat_offset) is table_moves
    assert _bytes(subject.path, room, 2 * MIB) == content


def test_m6_unknown_items_are_kept_by_writing_and_resizing(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    items = [
        Item(UNKNOWN, b"odd bytes", IS_VIRTUAL_DISK),
        Item(UNKNOWN, b"the user's", IS_USER),
        Item(OTHER, b"", IS_USER),
    ]
    subject.parts.metadata.items[:0] = items
    path = subject.write()
    region = subject.parts.metadata_offset
    size_at = subject.parts.metadata.encode()
    before = _bytes(path, region, 128 * KIB)

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await grow(disk, subject, 20 * MIB)
        await write_parts_of_all_blocks(disk, subject)

    use(subject, work)
    after = _bytes(path, region, 128 * KIB)
    (at,) = (offset for offset, data in size_at if data == struct.pack("<Q", 16 * MIB))
    assert after[at : at + 8] == struct.pack("<Q", 20 * MIB)
    assert after[:at] + after[at + 8 :] == before[:at] + before[at + 8 :]


@pytest.mark.parametrize("case", [test_vhdx_bat.trailing_garbage, test_vhdx_bat.trailing_512_bytes])
def test_b21_b22_bytes_behind_the_last_block_are_never_shown(case: Make, tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    case(subject)

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await write_parts_of_all_blocks(disk, subject)
        await grow(disk, subject, 30 * MIB)
        await write_parts_of_all_blocks(disk, subject)

    use(subject, work)


def test_b12_places_that_absent_blocks_name_are_cleared_with_their_page(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    test_vhdx_bat.absent_blocks_with_offsets(subject)
    assert entry(subject.write(), subject, 5) >> 20

    use(subject, lambda disk, subject: write(disk, subject, 9 * MIB, 512))
    assert [entry(subject.path, subject, block) for block in (4, 5)] == [State.NOT_PRESENT, State.ZERO]
    report = good("check", "-f", "vhdx", "--output", "json", subject.path)
    assert "B12" not in report


def test_b13_an_anchor_on_a_live_block_is_dropped_and_never_used(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    test_vhdx_bat.anchor_on_a_live_block(subject)

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await write(disk, subject, 4 * MIB + 512, 512)  # UNMAPPED, anchored where block 1 is
        await write(disk, subject, 10 * MIB, 512)

    use(subject, work)
    assert entry(subject.path, subject, 4) & ~0xFFFFF != entry(subject.path, subject, 1) & ~0xFFFFF
    assert entry(subject.path, subject, 5) == State.UNDEFINED


def test_an_unmapped_block_takes_its_own_place_again(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    room = subject.parts.append(MIB)
    subject.parts.patches.append((room, pattern(66, 6 * MIB, MIB)))
    subject.parts.set_entry(6, State.UNMAPPED, room)

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await write_parts_of_all_blocks(disk, subject)

    use(subject, work)
    assert entry(subject.path, subject, 6) == room | State.FULLY_PRESENT


def test_an_anchor_that_two_blocks_name_is_no_place_for_either_to_keep(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    room = subject.parts.append(MIB)
    for block in (6, 7):
        subject.parts.set_entry(block, State.UNMAPPED, room)

    use(subject, write_parts_of_all_blocks)
    assert entry(subject.path, subject, 6) & ~0xFFFFF != entry(subject.path, subject, 7) & ~0xFFFFF


@pytest.mark.parametrize("pages", [1, 256])
def test_b20_growing_clears_the_entries_behind_the_last_one(tmp_path: Path, pages: int) -> None:
    """More pages of them than one entry of the log can take."""
    subject = Subject(tmp_path)
    last = pages * 512
    for index in range(subject.vhdx.bat_entries, last):
        subject.parts.bat[index] = (index % 3 * MIB + 4 * MIB) | State.FULLY_PRESENT
    subject.write()

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        blocks = last - (last - 1) // 4097
        await disk.resize(blocks * MIB)
        for at in (16 * MIB, (blocks - 1) * MIB, blocks // 2 * MIB):
            assert not any(await disk.read(at, MIB))
        await write(disk, subject, 15 * MIB, 512)
        await disk.resize(16 * MIB)

    use(subject, work)
    good("check", "-q", "-f", "vhdx", subject.path)


def test_b19_bits_of_another_time_are_not_believed_when_a_block_becomes_partial(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    test_vhdx_bat.stale_bits_where_none_are_asked(subject)

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await write_parts_of_all_blocks(disk, subject)
        await disk.write_zeroes(0, MIB, unmap=True)
        subject.model.zero(0, MIB)
        await write(disk, subject, 512, 512)

    use(subject, work)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_c20_bytes_behind_the_end_of_the_disk_do_not_come_to_light_when_it_grows(
    tmp_path: Path, sector_size: int
) -> None:
    subject = Subject(tmp_path)
    blocks = {3: filled(4, 3)}
    parts = subject.rebuild(Vhdx(size=3 * MIB + 64 * KIB, sector_size=sector_size, blocks=blocks))
    assert any(parts.payload[3][1][64 * KIB :])

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await grow(disk, subject, 3 * MIB + 128 * KIB)
        await compare(disk, subject)
        await grow(disk, subject, 6 * MIB)

    use(subject, work)


def test_b18_bits_behind_the_end_of_the_disk_do_not_come_to_light_when_it_grows(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    test_vhdx_bat.bits_past_the_end_of_the_disk(subject)

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await grow(disk, subject, 3 * MIB + 128 * KIB)
        await compare(disk, subject)
        await grow(disk, subject, 5 * MIB)

    use(subject, work)


def test_b7_a_file_that_ends_within_its_last_block_is_made_whole(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    test_vhdx_bat.only_the_padding_beyond_the_end(subject)
    use(subject, lambda disk, subject: write(disk, subject, 4 * MIB, 4 * KIB))
    assert subject.path.stat().st_size % MIB == 0
    assert "B7" not in good("check", "-f", "vhdx", "--output", "json", subject.path)


@pytest.mark.parametrize(
    "case", [test_vhdx_headers.old_header_checksum_bad, test_vhdx_headers.current_header_checksum_bad]
)
def test_h3_h4_a_session_leaves_both_headers_good(case: Make, tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    case(subject)
    use(subject, lambda disk, subject: write(disk, subject, 0, 512))
    for at in HEADER_OFFSETS:
        raw = _bytes(subject.path, at, 4096)
        assert raw == seal(raw, None)
    good("check", "-q", "-f", "vhdx", subject.path)


def test_h19_reserved_bytes_of_the_headers_are_zeros_in_what_is_written(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    test_vhdx_headers.reserved_bytes_set(subject)
    use(subject, lambda disk, subject: write(disk, subject, 0, 512))
    for at in HEADER_OFFSETS:
        assert not any(_bytes(subject.path, at + 80, 4016))


@pytest.mark.parametrize(
    "case", [test_vhdx_regions.first_checksum_bad, test_vhdx_regions.second_checksum_bad]
)
def test_t1_t2_a_damaged_region_table_is_repaired_when_the_tables_change(case: Make, tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    case(subject)

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        await write_parts_of_all_blocks(disk, subject)
        await disk.resize(200 << 30)
        await disk.resize(16 * MIB)

    use(subject, work)
    first, second = tables(subject.path)
    assert first == second
    good("check", "-q", "-f", "vhdx", subject.path)


@pytest.mark.parametrize(
    "order", [("payload", "bat", "metadata", "log"), ("bat", "payload", "log", "metadata")]
)
@pytest.mark.parametrize("log_length", [MIB, 3 * MIB])
def test_the_log_may_be_anywhere_and_of_any_length(
    tmp_path: Path, order: tuple[str, ...], log_length: int
) -> None:
    subject = Subject(tmp_path)
    vhdx = Vhdx(order=order, log_length=log_length, gap=MIB, blocks={2: filled(3, 2), 5: filled(6, 5)})
    subject.rebuild(vhdx)
    use(subject, write_parts_of_all_blocks)
    good("check", "-q", "-f", "vhdx", subject.path)
    subprocess.run(["qemu-img", "check", "-q", "-f", "vhdx", subject.path], check=True, timeout=60)


# The log


def test_l12_the_file_is_made_as_long_as_the_log_says(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    test_vhdx_log.file_shorter_than_needed(subject)
    length = subject.parts.length

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        assert subject.path.stat().st_size == length + 2 * MIB

    use(subject, work)


def test_replay_never_cuts_a_file_that_is_longer(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    journal = Journal(subject)
    journal.put(0, journal.entry(3, journal.map(3)))
    journal.parts.append(3 * MIB)
    journal.parts.length += 700
    length = journal.parts.length

    async def work(disk: vblk.Disk, subject: Subject) -> None:
        assert subject.path.stat().st_size == length

    use(subject, work)


@pytest.mark.parametrize("flushed_less", [0, MIB])
def test_a_file_as_long_as_was_flushed_is_replayed(tmp_path: Path, flushed_less: int) -> None:
    subject = Subject(tmp_path)
    journal = Journal(subject)
    page = journal.map(3)
    length = journal.parts.length
    journal.put(0, journal.entry(3, page, flushed=length - flushed_less, last=length))
    use(subject, write_parts)


async def write_parts(disk: vblk.Disk, subject: Subject) -> None:
    for block in (0, 3, 4, 515, 1030):
        await write(disk, subject, block * MIB + 4 * KIB, 4 * KIB)


def test_a_replayed_log_leaves_nothing_that_a_later_session_could_meet(tmp_path: Path) -> None:
    """Old entries stay in the log with the old GUID; the next session writes over them, whole and in part."""
    subject = Subject(tmp_path)
    journal = Journal(subject)
    stale = journal.map(700, seen=False)
    journal.put(0x40000, journal.entry(900, stale))
    journal.put(0, journal.entry(1000, journal.map(3)))
    for _ in range(3):
        use(subject, write_parts)


@pytest.mark.parametrize("mend", [False, True], ids=["missing", "mended"])
def test_d5_a_dirty_child_is_not_replayed_for_a_chain_that_does_not_open(tmp_path: Path, mend: bool) -> None:
    subject = Subject(tmp_path)
    chain = subject.chain()
    child = chain.describe_child()
    child.blocks = {1: filled(9, 1), 5: Block(State.ZERO)}
    parts = child.assemble()
    parts.dirty(UNKNOWN)
    subject.vhdx, subject.parts = child, parts
    journal = object.__new__(Journal)
    journal.subject, journal.parts, journal.guid = subject, parts, UNKNOWN
    subject.model = child.see(chain.top.model.copy())
    journal.put(0, journal.entry(3, journal.map(3)))
    path = subject.write()
    before = path.read_bytes()
    base = tmp_path / "base.vhdx"
    base.rename(tmp_path / "away.vhdx")
    assert call("io", "-f", "vhdx", "-c", "write 0 512", path).status == 1
    assert path.read_bytes() == before
    if mend:
        (tmp_path / "away.vhdx").rename(base)
        use(subject, write_parts_of_all_blocks)


@pytest.mark.parametrize("case", [test_vhdx_log.one_good_entry, test_vhdx_log.entry_moves_the_bat])
def test_l30_a_dirty_file_that_may_not_be_written_is_read_through_its_log(case: Make, tmp_path: Path) -> None:
    """On a medium that is read-only even for root."""
    subject = Subject(tmp_path)
    case(subject)
    source = subject.write()

    async def attempt(path: Path) -> None:
        async with vblk.open(path, format="vhdx", rules=subject.rules) as disk:
            for offset in (0, 3 * MIB, 515 * MIB):
                assert await disk.read(offset, MIB) == subject.model.read(offset, MIB)
        with pytest.raises(BlockError):
            async with vblk.open(path, format="vhdx", read_only=False):
                pass

    if os.geteuid() != 0:
        source.chmod(0o444)
        asyncio.run(attempt(source))
        return
    with mounted("ext4", 64 * MIB, tmp_path) as place:
        path = place / "subject.vhdx"
        subprocess.run(["cp", "--sparse=always", source, path], check=True, timeout=60)
        before = path.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True, timeout=60)
        asyncio.run(attempt(path))
        outcome = call("io", "-f", "vhdx", "-c", "write 0 512", path)
        assert outcome.status == 1
        assert str(path) in outcome.err
        assert path.read_bytes() == before


def test_l28_a_log_that_would_make_the_bat_bad_is_left_where_it_is(tmp_path: Path) -> None:
    """Two blocks at one place, only after the replay: the file is untouched, and stays readable."""
    subject = Subject(tmp_path)
    journal = Journal(subject)
    place = subject.parts.state(0) & ~0xFFFFF
    journal.put(0, journal.entry(3, journal.page(3, place | State.FULLY_PRESENT)))
    before = subject.write().read_bytes()
    assert call("io", "-f", "vhdx", "-c", "write 0 512", subject.path).status == 1
    assert subject.path.read_bytes() == before


def test_replay_reaches_metadata_bitmaps_and_unknown_regions(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    journal = Journal(subject)
    room = journal.parts.append(MIB)
    for table in journal.parts.tables:
        table.regions.append(Region(UNKNOWN, room, MIB, 0))
    note = pattern(5, 0, 4096)
    metadata_end = next(
        region for region in journal.parts.tables[0].regions if region.guid == METADATA_REGION
    )
    spare = metadata_end.offset + metadata_end.length - 4096
    journal.put(0, journal.entry(3, Page(room, note), Page(spare, note), journal.map(3)))
    use(subject, write_parts)
    assert _bytes(subject.path, room, 4096) == note
    assert _bytes(subject.path, spare, 4096) == note
