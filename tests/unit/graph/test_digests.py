"""Hashes of what was copied: which ranges count as seen."""

import random

import pytest

from vblk.graph.digests import HASHES_OF_UNIT, UNIT_LEAST, UNITS_MOST, Digests, new_hash
from vblk.units import KIB, MIB, TIB

DATA = random.Random(1).randbytes(3 * MIB)


def seen_in(digests: Digests, offset: int, length: int) -> list[tuple[int, int, bool]]:
    return [(start, end, seen is not None) for start, end, seen in digests.ranges(offset, length)]


def digest_of(digests: Digests, start: int, end: int) -> bytes:
    (found,) = digests.ranges(start, end - start)
    assert found[:2] == (start, end)
    assert found[2] is not None
    assert found[2].hash is not None
    return found[2].hash.digest()


def test_what_follows_what_was_seen_is_one_range_up_to_where_a_unit_ends() -> None:
    digests = Digests(64 * MIB)
    for at in range(MIB, 3 * MIB, 64 * KIB):
        digests.note(at, DATA[at : at + 64 * KIB])
    assert seen_in(digests, 0, 4 * MIB) == [
        (0, MIB, False),
        (MIB, 2 * MIB, True),
        (2 * MIB, 3 * MIB, True),
        (3 * MIB, 4 * MIB, False),
    ]
    whole = new_hash()
    whole.update(DATA[MIB : 2 * MIB])
    assert digest_of(digests, MIB, 2 * MIB) == whole.digest()


def test_a_range_that_changes_in_part_is_not_seen_any_more() -> None:
    digests = Digests(64 * MIB)
    digests.note(0, DATA[:MIB])
    digests.note(MIB, DATA[MIB : MIB + 512])
    digests.forget(MIB + 100, 1)
    assert seen_in(digests, 0, 2 * MIB) == [(0, 2 * MIB, False)]


def test_what_is_seen_again_counts_as_it_is_then() -> None:
    digests = Digests(64 * MIB)
    digests.note(0, b"old" * 1000)
    digests.note(0, b"new" * 1000)
    latest = new_hash()
    latest.update(b"new" * 1000)
    assert digest_of(digests, 0, 3000) == latest.digest()


def test_a_range_that_was_seen_in_part_counts_as_not_seen() -> None:
    digests = Digests(64 * MIB)
    digests.note(0, DATA[:MIB])
    assert seen_in(digests, 512, MIB) == [(512, MIB + 512, False)]


def test_zeros_are_known_without_a_hash() -> None:
    digests = Digests(64 * MIB)
    digests.note_zeros(MIB, 2 * MIB)
    assert [(seen.start, seen.end, seen.hash) for seen in digests.seen()] == [
        (MIB, 2 * MIB, None),
        (2 * MIB, 3 * MIB, None),
    ]


@pytest.mark.parametrize(("size", "unit"), [(0, UNIT_LEAST), (64 * TIB, 64 * TIB // UNITS_MOST)])
def test_a_disk_has_a_bounded_number_of_units(size: int, unit: int) -> None:
    assert Digests(size).unit == unit


def test_what_is_too_scattered_counts_as_not_seen() -> None:
    digests = Digests(64 * MIB)
    for at in range(0, MIB, 8 * KIB):
        digests.note(at, DATA[at : at + 4 * KIB])
    assert len(list(digests.seen())) == HASHES_OF_UNIT
