"""Free space: what is fresh, what is stale, and when freed space may be used again."""

import random

from vblk.formats.space import Place
from vblk.formats.vhdx.bat import Reserved
from vblk.formats.vhdx.ownership import Owner, OwnershipTable
from vblk.formats.vhdx.space import EXTENSION_MIN, Space
from vblk.units import GIB, MIB

RESERVED = (Reserved(0, MIB, "header area"), Reserved(MIB, 2 * MIB, "log"), Reserved(90 * MIB, 95 * MIB, "x"))


def space(*blocks: int, size: int = 10 * MIB, may_reuse: bool = True) -> Space:
    owners = OwnershipTable()
    for block in blocks:
        owners.claim(block * MIB, MIB, Owner.BLOCK_START)
    return Space(owners, RESERVED, size, may_reuse=may_reuse)


def test_what_nobody_owns_is_stale_and_taken_first() -> None:
    room = space(2, 3, 5, 7, 8, 9)
    assert room.try_take(MIB) == Place(4 * MIB, MIB, fresh=False)
    assert room.try_take(MIB) == Place(6 * MIB, MIB, fresh=False)
    assert room.try_take(MIB) is None


def test_a_full_file_grows_in_large_steps_and_what_it_gains_is_fresh() -> None:
    room = space(*range(2, 10))
    assert room.try_take(2 * MIB) is None
    assert room.extension(2 * MIB) == 10 * MIB + EXTENSION_MIN
    assert room.extension(GIB) == 10 * MIB + GIB
    room.extended(50 * MIB)
    assert room.try_take(2 * MIB) == Place(10 * MIB, 2 * MIB, fresh=True)
    assert room.try_take(2 * MIB) == Place(12 * MIB, 2 * MIB, fresh=True)


def test_fresh_space_that_was_not_written_stays_fresh_and_other_does_not() -> None:
    room = space(*range(2, 10))
    room.extended(12 * MIB)
    place = room.try_take(MIB)
    assert place is not None
    room.put_back(place)
    assert room.try_take(MIB) == place
    room.free(place.file_offset, place.length)
    assert room.try_take(MIB) == Place(place.file_offset, MIB, fresh=False)


def test_space_that_must_not_be_reused_is_not() -> None:
    room = space(2, 3, 5, may_reuse=False)
    assert room.try_take(MIB) is None


def test_deferred_space_waits_for_the_readers_of_its_time_and_all_before() -> None:
    room = space(*range(2, 10))
    early = room.readers
    early.active += 1
    room.defer([(3 * MIB, MIB)])
    late = room.readers
    late.active += 1
    room.defer([(4 * MIB, MIB)])
    late.active -= 1
    room.promote()
    assert room.try_take(MIB) is None
    early.active -= 1
    room.promote()
    assert room.free_bytes == 2 * MIB


def test_deferred_space_without_readers_is_free_at_once() -> None:
    room = space(*range(2, 10))
    room.defer([(3 * MIB, 2 * MIB)])
    assert room.try_take(2 * MIB) == Place(3 * MIB, 2 * MIB, fresh=False)


def test_the_used_end_is_behind_the_last_thing_that_is_owned() -> None:
    room = space(2, 3, 7)
    assert room.used_end == 8 * MIB
    room.extended(64 * MIB)
    assert room.used_end == 8 * MIB
    assert space(2, size=100 * MIB).used_end == 95 * MIB


def test_no_range_is_ever_given_out_twice() -> None:
    chance = random.Random(5)
    room = space(2, 4, 6, size=20 * MIB)
    held: dict[int, Place] = {}
    for _ in range(3000):
        if held and chance.random() < 0.45:
            place = held.pop(chance.choice(list(held)))
            if chance.random() < 0.3:
                room.put_back(place)
            else:
                room.defer([(place.file_offset, place.length)])
            continue
        found = room.try_take(chance.choice((MIB, MIB, 2 * MIB, 8 * MIB)))
        if found is None:
            room.extended(room.file_size + 8 * MIB)
            continue
        taken = range(found.file_offset, found.file_offset + found.length)
        for other in held.values():
            assert taken.stop <= other.file_offset or taken.start >= other.file_offset + other.length
        assert found.file_offset >= 3 * MIB
        assert taken.stop <= room.file_size
        held[found.file_offset] = found
