"""The log and its overlay, the reading side of rows L1 to L29."""

import pytest

from tests.support.small_vhdx import (
    BAT_AT,
    FULLY,
    LOG_AT,
    LOG_GUID,
    METADATA_AT,
    MIB,
    OTHER,
    PAYLOAD_AT,
    SIZE,
    MemoryFile,
    Small,
    extents,
    header,
    load,
    log_entry,
    metadata,
    region_entry,
    region_table,
    sealed,
    summary,
)
from vblk.errors import CorruptImage, NeedsReplay, Reason
from vblk.extent import Kind
from vblk.formats.vhdx import VhdxImage

PAGE = 4096


def bat_page(*entries: int) -> bytes:
    return b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(PAGE, b"\0")


ONE = bat_page(PAYLOAD_AT | FULLY)
TWO = bat_page(PAYLOAD_AT | FULLY, (PAYLOAD_AT + MIB) | FULLY)
THREE = bat_page(0, 0, (PAYLOAD_AT + 2 * MIB) | FULLY)


def dirty(*entries: tuple[int, bytes], length: int = 8 * MIB) -> MemoryFile:
    """Return a dirty image whose log holds entries at positions."""
    small = Small(headers=(header(1), header(2, log_guid=LOG_GUID)), length=length)
    for position, data in entries:
        inside = MIB - position
        small.pieces[LOG_AT + position] = data[:inside]
        if len(data) > inside:
            small.pieces[LOG_AT] = data[inside:]
    return small.build()


def present(file: MemoryFile, image: VhdxImage) -> list[int]:
    """Return the blocks that have data."""
    return [
        extent.guest_offset // MIB + index
        for extent in extents(file, image, 0, image.virtual_size)
        if extent.kind is Kind.DATA
        for index in range(extent.length // MIB)
    ]


def write_bat(
    sequence: int, page: bytes, tail: int = 0, *, flushed: int = 8 * MIB, last: int = 8 * MIB
) -> bytes:
    return log_entry(sequence, [(BAT_AT, page)], tail=tail, flushed=flushed, last=last)


STALE_SECTOR = write_bat(2, TWO)[:PAGE] + b"x" * PAGE
NO_SECOND_DESCRIPTORS = (lambda entry: entry[:PAGE] + bytes(PAGE) + entry[2 * PAGE :])(
    log_entry(2, [(BAT_AT, TWO)] * 130)
)
OLD_NUMBERS = sealed(write_bat(1, TWO)[:16] + (2).to_bytes(8, "little") + write_bat(1, TWO)[24:])


@pytest.mark.parametrize(
    ("entries", "blocks", "replayed"),
    [
        pytest.param([(0, write_bat(1, ONE))], [0], 1, id="L1"),
        pytest.param([(0, write_bat(1, ONE)), (0x2000, STALE_SECTOR)], [0], 1, id="L4"),
        pytest.param([(0, write_bat(1, ONE)), (0x2000, NO_SECOND_DESCRIPTORS)], [0], 1, id="L5"),
        pytest.param([(0, write_bat(1, ONE)), (0x2000, OLD_NUMBERS)], [0], 1, id="L6"),
        pytest.param(
            [
                (MIB - 0x4000, write_bat(3, ONE, MIB - 0x4000)),
                (MIB - 0x2000, write_bat(4, ONE, MIB - 0x4000)),
                (0, write_bat(5, ONE, MIB - 0x4000)),
                (0x2000, log_entry(6, [(BAT_AT + PAGE, ONE)], tail=MIB - 0x4000)),
            ],
            [0],
            4,
            id="L7",
        ),
        pytest.param([(MIB - PAGE, write_bat(1, ONE, MIB - PAGE))], [0], 1, id="L7-one-entry-wraps"),
        pytest.param([(0, write_bat(1, ONE)), (0x2000, write_bat(2, TWO, 0x2000))], [0, 1], 1, id="L8"),
        pytest.param([(0, write_bat(1, ONE)), (0x2000, write_bat(3, THREE, 0x2000))], [2], 1, id="L9"),
        pytest.param([(0, log_entry(1, []))], [], 1, id="L16"),
        pytest.param([(0, write_bat(1, TWO)), (0x2000, log_entry(2, [(BAT_AT, PAGE)]))], [], 2, id="L17"),
        pytest.param(
            [(0, log_entry(1, [(BAT_AT, PAGE)])), (0x1000, write_bat(2, TWO))], [0, 1], 2, id="L17-page-later"
        ),
        pytest.param([(0, log_entry(1, [(BAT_AT, ONE), (BAT_AT, 0)]))], [0], 1, id="L18-zero-length"),
        pytest.param([(0, log_entry(1, [(BAT_AT, ONE), (BAT_AT, THREE)]))], [2], 1, id="L22"),
        pytest.param([(0, log_entry(1, [(BAT_AT, ONE), (BAT_AT, PAGE)]))], [], 1, id="L22-zeros"),
        pytest.param([(0, write_bat(9, ONE)), (0x8000, write_bat(20, THREE, 0x8000))], [2], 1, id="L26"),
        pytest.param(
            [(0x8000, write_bat(1 << 40, ONE, 0x8000))], [0], 1, id="both-halves-of-the-number-count"
        ),
    ],
)
def test_the_active_sequence_is_replayed_in_order(
    entries: list[tuple[int, bytes]], blocks: list[int], replayed: int
) -> None:
    file = dirty(*entries)
    image = load(file)
    assert present(file, image) == blocks
    assert [finding.code for finding in image.findings] == ["L29"]
    assert image.dirty_log is not None
    assert image.dirty_log.replayable
    assert image.dirty_log.entries == replayed
    assert image.read_only_reasons == []


FULL_LOG = log_entry(1, [(BAT_AT, ONE)] * 254)


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([], id="L2"),
        pytest.param([(0, write_bat(1, ONE)[:-1] + b"x")], id="L3"),
        pytest.param([(0, write_bat(1, ONE)[:100] + b"x" + write_bat(1, ONE)[101:])], id="L3-checksum"),
        pytest.param([(0, write_bat(2, ONE, 0x8000))], id="L10"),
        pytest.param([(0, log_entry(1, [(BAT_AT, ONE)], guid=OTHER))], id="L13"),
        pytest.param([(0, write_bat(0, ONE))], id="L20"),
        pytest.param([(0, FULL_LOG)], id="L21"),
        pytest.param(
            [(0, sealed(log_entry(1, [])[:24] + b"\xff" * 4 + log_entry(1, [])[28:]))], id="L23-count"
        ),
        pytest.param(
            [(0, sealed(log_entry(1, [])[:8] + b"\0\xf0\xff\xff" + log_entry(1, [])[12:]))], id="L23-length"
        ),
        pytest.param([(0, write_bat(1, ONE, 512))], id="L24-unaligned"),
        pytest.param([(0, write_bat(1, ONE, MIB))], id="L24-outside"),
        pytest.param([(0, sealed(log_entry(1, [])[:8] + bytes(4) + log_entry(1, [])[12:]))], id="L25"),
        pytest.param([(512, write_bat(1, ONE))], id="unaligned-start"),
        pytest.param([(0, log_entry(1, [(BAT_AT + 512, ONE)]))], id="unaligned-page"),
        pytest.param([(0, log_entry(1, [(BAT_AT, 512)]))], id="unaligned-zeros"),
    ],
)
def test_l2_a_log_without_a_sequence_is_ignored_and_forbids_writing(entries: list[tuple[int, bytes]]) -> None:
    file = dirty(*entries)
    image = load(file)
    assert present(file, image) == []
    assert [finding.code for finding in image.findings] == ["L2"]
    assert image.read_only_reasons
    assert image.dirty_log is not None
    assert not image.dirty_log.replayable


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        pytest.param(write_bat(1, ONE, flushed=9 * MIB, last=9 * MIB), Reason.TRUNCATED, id="L11"),
        pytest.param(log_entry(1, [(0x20000, ONE)]), Reason.BAD_LOG, id="L14"),
        pytest.param(log_entry(1, [(0, 1 << 20)]), Reason.BAD_LOG, id="L14-zeros"),
        pytest.param(log_entry(1, [(LOG_AT + 0x8000, ONE)]), Reason.BAD_LOG, id="L15"),
        pytest.param(log_entry(1, [(0x30000, 2 * MIB)]), Reason.BAD_LOG, id="L15-zeros-across"),
        pytest.param(log_entry(1, [(1 << 50, PAGE)]), Reason.BAD_LOG, id="L18"),
        pytest.param(log_entry(1, [(BAT_AT, 1 << 40)]), Reason.BAD_LOG, id="L19"),
        pytest.param(log_entry(1, [((1 << 64) - PAGE, PAGE)]), Reason.BAD_LOG, id="L18-most"),
        pytest.param(log_entry(1, [], last=1 << 63), Reason.LIMIT, id="last-file-offset-beyond-all-files"),
    ],
)
def test_a_sequence_that_no_writer_made_is_refused(entry: bytes, reason: Reason) -> None:
    with pytest.raises(CorruptImage) as caught:
        load(dirty((0, entry)))
    assert caught.value.reason is reason


def test_l12_the_file_is_as_long_as_the_log_says_and_ends_in_zeros() -> None:
    page = bat_page((PAYLOAD_AT + 3 * MIB) | FULLY, (PAYLOAD_AT + 4 * MIB) | FULLY)
    file = dirty((0, write_bat(1, page, last=9 * MIB)), length=8 * MIB - 512)
    file = MemoryFile(file.pieces, 8 * MIB - 512)
    entry = write_bat(1, page, flushed=7 * MIB, last=9 * MIB)
    file.pieces.append((LOG_AT, entry))
    image = load(file)
    assert image.target_length == 9 * MIB
    assert summary(extents(file, image, 0, 2 * MIB)) == [
        (Kind.DATA, 0, MIB - 512, PAYLOAD_AT + 3 * MIB),
        (Kind.ZERO, MIB - 512, MIB + 512, None),
    ]


def test_l27_region_tables_are_parsed_as_the_log_leaves_them() -> None:
    table = region_table(
        region_entry(bytes.fromhex("6677c22d23f600429d64115e9bfd4a08"), 6 * MIB),
        region_entry(bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e"), METADATA_AT),
    )
    changes: list[tuple[int, bytes | int]] = [(6 * MIB, ONE)]
    for start in (0x30000, 0x40000):
        changes += [(start + at, table[at : at + PAGE]) for at in range(0, len(table), PAGE)]
    file = dirty((0, log_entry(1, changes)))
    image = load(file)
    assert image.regions.bat.file_offset == 6 * MIB
    assert present(file, image) == [0]
    assert image.dirty_log is not None
    assert image.dirty_log.touches == {"region tables": 0x20000, "BAT": PAGE}


def test_l28_metadata_is_parsed_as_the_log_leaves_it() -> None:
    items = Small().items() | {SIZE: (2 * MIB).to_bytes(8, "little")}
    region = metadata(items).ljust(17 * PAGE, b"\0")
    file = dirty((0, log_entry(1, [(METADATA_AT + 16 * PAGE, region[16 * PAGE : 17 * PAGE])])))
    assert load(file).virtual_size == 2 * MIB


def test_l28_a_log_that_makes_nonsense_is_refused() -> None:
    with pytest.raises(CorruptImage) as caught:
        load(dirty((0, log_entry(1, [(METADATA_AT, PAGE)]))))
    assert caught.value.reason is Reason.WRONG_SIGNATURE


def test_l29_strict_refuses_a_dirty_log() -> None:
    with pytest.raises(NeedsReplay) as caught:
        load(dirty((0, write_bat(1, ONE))), strict=True)
    assert caught.value.reason is Reason.DIRTY_LOG


def test_any_flipped_byte_makes_an_entry_no_entry() -> None:
    entry = write_bat(1, ONE)
    for at in [*range(96), *range(PAGE - 8, PAGE + 16), 2 * PAGE - 1]:
        flipped = entry[:at] + bytes((entry[at] ^ 0x40,)) + entry[at + 1 :]
        assert [finding.code for finding in load(dirty((0, flipped))).findings] == ["L2"], at


def test_entries_may_cross_the_window_in_which_the_log_is_searched() -> None:
    small = Small(
        headers=(header(1), header(2, log_guid=LOG_GUID, log_offset=8 * MIB, log_length=3 * MIB)),
        length=11 * MIB,
    )
    start = MIB - PAGE
    changes: list[tuple[int, bytes | int]] = [(BAT_AT + PAGE, ONE)] * 300
    small.pieces[8 * MIB + start] = log_entry(1, [*changes, (BAT_AT, TWO)], tail=start, last=11 * MIB)
    file = small.build()
    assert present(file, load(file)) == [0, 1]
