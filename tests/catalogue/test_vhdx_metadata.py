"""Bad inputs, cases M1 to M26 and M17b: the metadata region."""

import struct
from pathlib import Path
from uuid import UUID

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
    refused,
)
from tests.support.subject import Subject
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.model import Model
from tests.support.vhdx.records import (
    FILE_PARAMETERS,
    INCOMPLETE_FILE,
    IS_REQUIRED,
    IS_USER,
    IS_VIRTUAL_DISK,
    KIB,
    LOGICAL_SECTOR_SIZE,
    METADATA_REGION,
    MIB,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE,
    TIB,
    VIRTUAL_DISK_ID,
    VIRTUAL_DISK_SIZE,
    Item,
    encode_locator,
    linkage,
)
from vblk.errors import CorruptImage, Reason, UnsupportedFeature

CASES = Catalogue("M", [*numbers(26), "17b"])

UNKNOWN = UUID("12345678-1234-5678-1234-567812345678")


def set_u64(subject: Subject, guid: UUID, value: int) -> None:
    """Give an item another 64-bit value."""
    subject.parts.metadata.set(guid, struct.pack("<Q", value))


def set_u32(subject: Subject, guid: UUID, value: int) -> None:
    """Give an item another 32-bit value."""
    subject.parts.metadata.set(guid, struct.pack("<I", value))


@CASES.add("M1", refused(Reason.WRONG_SIGNATURE, error=CorruptImage))
def signature(subject: Subject) -> None:
    subject.parts.metadata.signature = b"metadatA"


@CASES.add("M2-2048", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def one_entry_too_many(subject: Subject) -> None:
    subject.parts.metadata.count = 2048


@CASES.add("M2-most", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def most_entries(subject: Subject) -> None:
    subject.parts.metadata.count = 0xFFFF


def _without(guid: UUID) -> Make:
    return lambda subject: subject.parts.metadata.remove(guid)


CASES.add("M3-parameters", refused(Reason.MISSING_ITEM, error=CorruptImage))(_without(FILE_PARAMETERS))
CASES.add("M3-size", refused(Reason.MISSING_ITEM, error=CorruptImage))(_without(VIRTUAL_DISK_SIZE))
CASES.add("M3-logical", refused(Reason.MISSING_ITEM, error=CorruptImage))(_without(LOGICAL_SECTOR_SIZE))
CASES.add("M3-physical", Opens(codes=OWN))(_without(PHYSICAL_SECTOR_SIZE))
CASES.add("M3-id", Opens(codes=OWN))(_without(VIRTUAL_DISK_ID))


@CASES.add("M4", refused(Reason.DUPLICATE, error=CorruptImage))
def size_twice(subject: Subject) -> None:
    twin = Item(VIRTUAL_DISK_SIZE, struct.pack("<Q", 8 * MIB), IS_VIRTUAL_DISK | IS_REQUIRED)
    subject.parts.metadata.items.append(twin)


@CASES.add("M4-user", refused(Reason.DUPLICATE, error=CorruptImage))
def user_item_twice(subject: Subject) -> None:
    subject.parts.metadata.items += [Item(UNKNOWN, b"a", IS_USER), Item(UNKNOWN, b"b", IS_USER)]


@CASES.add("M5", refused(Reason.UNKNOWN_REQUIRED, error=UnsupportedFeature))
def unknown_required(subject: Subject) -> None:
    subject.parts.metadata.items.append(Item(UNKNOWN, b"what?", IS_REQUIRED))


@CASES.add("M6-system", Opens())
def unknown_optional(subject: Subject) -> None:
    subject.parts.metadata.items.insert(0, Item(UNKNOWN, b"odd", IS_VIRTUAL_DISK))


@CASES.add("M6-user", Opens())
def user_items(subject: Subject) -> None:
    misleading = Item(VIRTUAL_DISK_SIZE, struct.pack("<Q", 8 * MIB), IS_USER)
    subject.parts.metadata.items[:0] = [misleading, Item(UNKNOWN, b"", IS_USER)]


@CASES.add("M7", refused(Reason.UNFINISHED))
def creation_unfinished(subject: Subject) -> None:
    subject.parts.metadata.items.append(Item(INCOMPLETE_FILE, b"", IS_REQUIRED))


@CASES.add("M8", refused(Reason.BAD_VALUE, Reason.OVERLAP, Reason.OUT_OF_FILE, error=CorruptImage))
def item_within_the_table(subject: Subject) -> None:
    subject.parts.metadata.find(VIRTUAL_DISK_SIZE).offset = 64 * KIB - 8


@CASES.add("M9-end", refused(Reason.BAD_VALUE, Reason.OUT_OF_FILE, error=CorruptImage))
def item_past_the_end(subject: Subject) -> None:
    subject.parts.metadata.find(VIRTUAL_DISK_SIZE).offset = MIB - 4


@CASES.add("M9-wrap", refused(Reason.BAD_VALUE, Reason.OUT_OF_FILE, error=CorruptImage))
def item_wraps(subject: Subject) -> None:
    item = subject.parts.metadata.find(VIRTUAL_DISK_SIZE)
    subject.parts.metadata.items[1] = Item(item.guid, b"", item.flags, offset=2**32 - 4, length=8)


@CASES.add("M10", refused(Reason.OVERLAP, error=CorruptImage))
def items_overlap(subject: Subject) -> None:
    subject.parts.metadata.find(FILE_PARAMETERS).offset = 65536
    subject.parts.metadata.find(VIRTUAL_DISK_ID).offset = 65536 + 64
    subject.parts.metadata.find(VIRTUAL_DISK_SIZE).offset = 65536 + 64 + 12


def _with_length(guid: UUID, length: int) -> Make:
    def make(subject: Subject) -> None:
        item = subject.parts.metadata.find(guid)
        item.data = item.data[:length].ljust(length, b"\0")

    return make


for _name, _guid, _length in (
    ("parameters", FILE_PARAMETERS, 4),
    ("parameters-long", FILE_PARAMETERS, 16),
    ("size", VIRTUAL_DISK_SIZE, 4),
    ("id", VIRTUAL_DISK_ID, 8),
    ("logical", LOGICAL_SECTOR_SIZE, 2),
    ("physical", PHYSICAL_SECTOR_SIZE, 8),
    ("empty", VIRTUAL_DISK_SIZE, 0),
):
    CASES.add(f"M11-{_name}", refused(Reason.BAD_VALUE, Reason.MISSING_ITEM, error=CorruptImage))(
        _with_length(_guid, _length)
    )


@CASES.add("M12", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def item_above_1_mib(subject: Subject) -> None:
    room = subject.parts.append(4 * MIB)
    subject.parts.metadata_offset = room
    for table in subject.parts.tables:
        table.find(METADATA_REGION).offset = room
        table.find(METADATA_REGION).length = 4 * MIB
    subject.parts.metadata.items.append(Item(UNKNOWN, bytes(MIB + 1), IS_USER))


def _with_block_size(size: int) -> Make:
    return lambda subject: subject.parts.metadata.set(FILE_PARAMETERS, struct.pack("<II", size, 0))


for _size in (0, 512 * KIB, 3 * MIB, 512 * MIB, 2**32 - 1, MIB + 512):
    CASES.add(f"M13-{_size}", refused(Reason.BAD_VALUE, Reason.LIMIT, error=CorruptImage))(
        _with_block_size(_size)
    )


@CASES.add("M14", Opens(codes=OWN))
def parameters_reserved_bits(subject: Subject) -> None:
    subject.parts.metadata.set(FILE_PARAMETERS, struct.pack("<II", MIB, 0xFFFFFFFC))


@CASES.add("M15", refused(Reason.BAD_VALUE, error=CorruptImage))
def size_zero(subject: Subject) -> None:
    set_u64(subject, VIRTUAL_DISK_SIZE, 0)


@CASES.add("M16", Opens(clean=True))
def size_64_tib(subject: Subject) -> None:
    blocks = {
        0: Block(State.FULLY_PRESENT, b"first" * 100),
        262143: Block(State.FULLY_PRESENT, b"last" * 100),
    }
    subject.rebuild(Vhdx(size=64 * TIB, block_size=256 * MIB, blocks=blocks))


@CASES.add("M17-65TiB", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def size_65_tib(subject: Subject) -> None:
    subject.rebuild(Vhdx(size=65 * TIB, block_size=256 * MIB))


@CASES.add("M17-64TiB+512", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def size_a_sector_above_64_tib(subject: Subject) -> None:
    subject.rebuild(Vhdx(size=64 * TIB + 512, block_size=256 * MIB))


@CASES.add("M17-most", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def size_at_the_end_of_64_bits(subject: Subject) -> None:
    set_u64(subject, VIRTUAL_DISK_SIZE, 2**64 - 512)


@CASES.add("M17b", refused(Reason.LIMIT, Reason.BAD_VALUE, error=CorruptImage))
def block_count_wraps_32_bits(subject: Subject) -> None:
    set_u64(subject, VIRTUAL_DISK_SIZE, 4096 * TIB + 16 * MIB)


@CASES.add("M18", refused(Reason.BAD_VALUE, error=CorruptImage))
def size_not_in_sectors(subject: Subject) -> None:
    set_u64(subject, VIRTUAL_DISK_SIZE, 16 * MIB + 1)


@CASES.add("M18-4096", refused(Reason.BAD_VALUE, error=CorruptImage))
def size_not_in_4_kib_sectors(subject: Subject) -> None:
    subject.rebuild(sector_size=4096)
    set_u64(subject, VIRTUAL_DISK_SIZE, 16 * MIB - 512)


@CASES.add("M19", Opens(clean=True))
def size_with_an_odd_sector(subject: Subject) -> None:
    subject.rebuild(size=16 * MIB + 512, blocks={16: Block(State.FULLY_PRESENT, b"z" * 512)})


@CASES.add("M20", refused(Reason.BAD_VALUE, Reason.LIMIT, Reason.OUT_OF_FILE, error=CorruptImage))
def bat_too_small(subject: Subject) -> None:
    set_u64(subject, VIRTUAL_DISK_SIZE, TIB)


@CASES.add("M20-by-one", refused(Reason.BAD_VALUE, Reason.LIMIT, Reason.OUT_OF_FILE, error=CorruptImage))
def bat_too_small_by_one_entry(subject: Subject) -> None:
    entries = MIB // 8
    blocks = entries - (entries - 1) // 4097
    set_u64(subject, VIRTUAL_DISK_SIZE, (blocks + 1) * MIB)


@CASES.add("M20-just-enough", Opens(clean=True))
def bat_just_large_enough(subject: Subject) -> None:
    entries = MIB // 8
    blocks = entries - (entries - 1) // 4097
    set_u64(subject, VIRTUAL_DISK_SIZE, blocks * MIB)
    subject.model = subject.model.copy(blocks * MIB)


def _with_logical(size: int) -> Make:
    return lambda subject: set_u32(subject, LOGICAL_SECTOR_SIZE, size)


for _size in (0, 520, 1024, 256, 8192, 2**31):
    CASES.add(f"M21-{_size}", refused(Reason.BAD_VALUE))(_with_logical(_size))


def _with_sectors(logical: int, physical: int) -> Make:
    def make(subject: Subject) -> None:
        subject.rebuild(sector_size=logical, physical_sector_size=physical)

    return make


for _logical, _physical in ((4096, 4096), (4096, 512), (512, 4096)):
    CASES.add(f"M22-{_logical}-{_physical}", Opens(clean=True))(_with_sectors(_logical, _physical))


def _with_physical(size: int) -> Make:
    return lambda subject: set_u32(subject, PHYSICAL_SECTOR_SIZE, size)


for _size in (0, 520):
    CASES.add(f"M23-{_size}", Opens(codes=OWN))(_with_physical(_size))


@CASES.add("M24", Opens())
def fixed_and_differencing(subject: Subject) -> None:
    chain = subject.chain()
    chain.child([(512, 512), (5 * MIB, MIB)], fixed=True)
    subject.use(chain)


@CASES.add("M25", refused(Reason.MISSING_ITEM, Reason.PARENT_LOCATOR, error=CorruptImage))
def parent_without_locator(subject: Subject) -> None:
    subject.parts.metadata.set(FILE_PARAMETERS, struct.pack("<II", MIB, 2))


@CASES.add("M26", Opens(codes=OWN))
def locator_without_parent(subject: Subject) -> None:
    chain = subject.chain()
    pairs = [("parent_linkage", linkage(chain.top.vhdx.data_write)), ("relative_path", ".\\base.vhdx")]
    item = Item(PARENT_LOCATOR, encode_locator(pairs), IS_REQUIRED)
    subject.rebuild(size=8 * MIB, blocks={0: Block(State.NOT_PRESENT)})
    subject.parts.metadata.items.append(item)
    model = Model(8 * MIB)
    subject.model = subject.vhdx.see(model)


def test_every_number_of_the_section_has_a_case() -> None:
    assert CASES.missing() == []


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_library_does_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_library(make, wanted, tmp_path)


@pytest.mark.parametrize(("make", "wanted"), CASES.parameters())
def test_the_commands_do_what_is_asked(make: Make, wanted: Refused | Opens, tmp_path: Path) -> None:
    judge_commands(make, wanted, tmp_path)
