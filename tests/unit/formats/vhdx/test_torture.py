"""Whole images cut at every boundary and with bytes flipped: only typed errors leave."""

import json
import random
from itertools import chain

import pytest

from tests.support.small_vhdx import (
    BAT_AT,
    FULLY,
    LOCATOR,
    LOG_AT,
    LOG_GUID,
    METADATA_AT,
    MIB,
    PARTLY,
    PAYLOAD_AT,
    MemoryFile,
    Small,
    extents,
    header,
    load,
    locator,
    log_entry,
    metadata,
    region_table,
    run,
    sealed,
)
from vblk.errors import ImageError
from vblk.formats.vhdx import VhdxImage, check_image

PAIRS = {"parent_linkage": "{00112233-4455-6677-8899-aabbccddeeff}", "relative_path": ".\\p.vhdx"}
PAGE = (PAYLOAD_AT | FULLY).to_bytes(8, "little") + ((PAYLOAD_AT + MIB) | PARTLY).to_bytes(8, "little")


def rich() -> MemoryFile:
    """Return a dirty differencing image with every structure in it."""
    entry = log_entry(1, [(BAT_AT, PAGE.ljust(4096, b"\0")), (BAT_AT + 8192, 4096)])
    return Small(
        bits=2,
        extra_items={LOCATOR: locator(PAIRS)},
        headers=(header(1), header(2, log_guid=LOG_GUID)),
        entries={4096: (PAYLOAD_AT + 2 * MIB) | FULLY},
        pieces={LOG_AT: entry, PAYLOAD_AT + 2 * MIB: b"\xf0" * 700},
    ).build()


def try_load(file: MemoryFile) -> tuple[VhdxImage | None, ImageError | None]:
    try:
        return load(file), None
    except ImageError as error:
        return None, error


def exercise(file: MemoryFile) -> bool:
    """Do everything that reading means; tell whether the image opened."""
    image, refusal = try_load(file)
    if image is None:
        assert refusal is not None
        assert refusal.filename == "small.vhdx"
        assert refusal.message
        return False
    json.dumps(image.describe())
    run(check_image(image, file.read))
    length = min(image.virtual_size, image.lookup_step, 8 * MIB)
    for start in range(0, length, MIB):
        try:
            found = extents(file, image, start, min(MIB, length - start))
        except ImageError:
            continue
        assert sum(extent.length for extent in found) == min(MIB, length - start)
    return True


def test_the_image_is_sound_to_begin_with() -> None:
    assert exercise(rich())


@pytest.mark.parametrize(
    "length",
    sorted(
        set(
            chain(
                range(0, 600, 7),
                (
                    at + delta
                    for at in (0x10000, 0x11000, 0x20000, 0x30000, 0x40000, 0x50000)
                    for delta in (-1, 0, 1)
                ),
                (n * MIB + delta for n in range(1, 9) for delta in (-1, 0, 1, 4096, 65536)),
            )
        )
    ),
)
def test_a_file_cut_anywhere(length: int) -> None:
    whole = rich()
    exercise(MemoryFile(whole.pieces, length))


PLACES = {
    "headers": (0x10000, 80),
    "second-header": (0x20000, 80),
    "regions": (0x30000, 80),
    "log": (LOG_AT, 128),
    "metadata": (METADATA_AT, 32 + 6 * 32),
    "items": (METADATA_AT + 65536, 40 + 200),
    "bat": (BAT_AT, 16),
    "bitmap-entry": (BAT_AT + 4096 * 8, 8),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_anywhere(place: str) -> None:
    whole = rich()
    start, length = PLACES[place]
    chance = random.Random(place)
    for at in range(start, start + length):
        value = whole.at(at, 1)[0] ^ (1 << chance.randrange(8))
        exercise(MemoryFile([*whole.pieces, (at, bytes((value,)))], whole.length))


@pytest.mark.parametrize("seed", range(150))
def test_random_fields_under_right_checksums(seed: int) -> None:
    chance = random.Random(seed)

    def broken(data: bytes, used: int, *, checksum: bool = True) -> bytes:
        raw = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(0, used, 4)
            edge = chance.choice((0, 1, 0xFF, 0x7F, 0x80, chance.randrange(256)))
            raw[at : at + chance.choice((1, 2, 4, 8))] = bytes((edge,)) * chance.choice((1, 2, 4, 8))
        fixed = bytes(raw[: len(data)]).ljust(len(data), b"\0")
        return sealed(fixed) if checksum else fixed

    whole = rich()
    target = chance.choice(("header", "regions", "log", "metadata", "bat"))
    if target == "header":
        piece = (0x20000, broken(header(2, log_guid=LOG_GUID), 80))
    elif target == "regions":
        table = region_table(*Small().regions)
        piece = (0x30000, broken(table, 80))
    elif target == "log":
        piece = (LOG_AT, broken(log_entry(1, [(BAT_AT, PAGE.ljust(4096, b"\0"))]), 96))
    elif target == "metadata":
        items = Small(bits=2, extra_items={LOCATOR: locator(PAIRS)}).items()
        region = metadata(items)
        piece = (METADATA_AT, broken(region, chance.choice((224, len(region))), checksum=False))
    else:
        piece = (LOG_AT, log_entry(1, [(BAT_AT, broken(PAGE.ljust(4096, b"\0"), 40, checksum=False))]))
    exercise(MemoryFile([*whole.pieces, piece], whole.length))
