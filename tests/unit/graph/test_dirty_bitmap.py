"""Dirty bitmaps: their bits against a model, and what is refused."""

import random
from itertools import pairwise

import pytest

from vblk.errors import GraphError, OptionError
from vblk.graph.dirty_bitmap import UNITS_MAX, DirtyBitmap, granularity_for

UNIT = 512
CHUNK = 1 << 18
"""Units that are kept together."""


def dirty(bitmap: DirtyBitmap) -> list[tuple[int, int]]:
    """Return the first byte and the length of each dirty range, after looking at the order of all."""
    found = list(bitmap.ranges(0, bitmap.size))
    assert sum(length for _, length, _ in found) == bitmap.size
    for (start, length, is_dirty), (after, _, is_next) in pairwise(found):
        assert start + length == after
        assert is_dirty is not is_next
    return [(start, length) for start, length, is_dirty in found if is_dirty]


@pytest.mark.parametrize("seed", range(6))
def test_any_marks_equal_a_set_of_units(seed: int) -> None:
    dice = random.Random(seed)
    units = dice.choice([100, 3 * CHUNK + 77])
    size = units * UNIT - dice.randrange(UNIT)
    bitmap = DirtyBitmap("b", size, UNIT)
    model = bytearray(units)
    for _ in range(60):
        first = dice.choice([0, CHUNK - 5, CHUNK, 2 * CHUNK - 1, dice.randrange(units)]) % units
        count = min(dice.choice([1, 7, 64, CHUNK, 2 * CHUNK]), units - first)
        offset, length = first * UNIT, min(count * UNIT, size - first * UNIT)
        if dice.random() < 0.6:
            inside = dice.randrange(min(UNIT, length))
            bitmap.set(offset + inside, length - inside)
            model[first : first + count] = b"\1" * count
        else:
            bitmap.reset(offset, length)
            model[first : first + count] = bytes(count)
        assert bitmap.count == model.count(1) * UNIT
        probe = dice.randrange(units)
        assert bitmap.is_dirty(min(probe * UNIT, size - 1)) == bool(model[probe])
    expected: list[tuple[int, int]] = []
    at = model.find(1)
    while at >= 0:
        stop = model.find(0, at)
        end = size if stop < 0 else stop * UNIT
        expected.append((at * UNIT, end - at * UNIT))
        at = model.find(1, stop) if stop >= 0 else -1
    assert dirty(bitmap) == expected


def test_a_range_is_answered_from_within_units() -> None:
    bitmap = DirtyBitmap("b", 10 * UNIT, UNIT)
    bitmap.set(2 * UNIT, 2 * UNIT)
    assert list(bitmap.ranges(UNIT + 5, 3 * UNIT)) == [
        (UNIT + 5, UNIT - 5, False),
        (2 * UNIT, 2 * UNIT, True),
        (4 * UNIT, 5, False),
    ]
    assert list(bitmap.ranges(2 * UNIT + 9, 3)) == [(2 * UNIT + 9, 3, True)]
    assert not list(bitmap.ranges(0, 0))


def test_units_are_clean_again_only_when_all_of_them_is_reset() -> None:
    bitmap = DirtyBitmap("b", 3 * UNIT + 1, UNIT)
    bitmap.set(0, bitmap.size)
    bitmap.reset(1, 2 * UNIT)
    assert dirty(bitmap) == [(0, UNIT), (2 * UNIT, UNIT + 1)]
    bitmap.reset(2 * UNIT, UNIT + 1)
    assert dirty(bitmap) == [(0, UNIT)]


def test_a_disabled_bitmap_marks_nothing() -> None:
    bitmap = DirtyBitmap("b", 10 * UNIT, UNIT, enabled=False)
    bitmap.mark(0, UNIT)
    assert not bitmap.count
    bitmap.enabled = True
    bitmap.mark(0, UNIT)
    assert bitmap.count == UNIT


def test_marks_that_were_cleared_can_be_given_back_beside_newer_ones() -> None:
    bitmap = DirtyBitmap("b", 10 * UNIT, UNIT)
    bitmap.set(0, UNIT)
    taken = bitmap.clear()
    assert not bitmap.count
    bitmap.set(5 * UNIT, UNIT)
    bitmap.give_back(taken)
    assert dirty(bitmap) == [(0, UNIT), (5 * UNIT, UNIT)]
    bitmap.set(9 * UNIT, 1)
    assert sum(bin(int.from_bytes(chunk)).count("1") for chunk in taken.values()) == 1


def test_saved_marks_do_not_change_with_the_bitmap() -> None:
    bitmap = DirtyBitmap("b", 10 * UNIT, UNIT)
    bitmap.set(0, UNIT)
    saved = bitmap.marks()
    bitmap.set(5 * UNIT, UNIT)
    bitmap.restore(saved)
    assert dirty(bitmap) == [(0, UNIT)]
    bitmap.set(5 * UNIT, UNIT)
    bitmap.restore(saved)
    assert dirty(bitmap) == [(0, UNIT)]


@pytest.mark.parametrize(("mine", "other"), [(512, 512), (512, 4096), (4096, 512)])
def test_bitmaps_of_any_granularity_merge(mine: int, other: int) -> None:
    target, source = DirtyBitmap("t", 1 << 20, mine), DirtyBitmap("s", 1 << 20, other)
    target.set(0, 1)
    source.set(100_000, 1)
    target.merge(source)
    unit = max(mine, other)
    assert dirty(target) == [(0, mine), (100_000 // unit * unit, unit)]
    assert source.count == other
    with pytest.raises(GraphError, match="different sizes"):
        target.merge(DirtyBitmap("x", 1 << 19, mine))


def test_a_disk_that_grows_is_dirty_there_and_one_that_shrinks_forgets() -> None:
    bitmap = DirtyBitmap("b", 10 * UNIT, UNIT)
    bitmap.resize(12 * UNIT + 1)
    assert dirty(bitmap) == [(10 * UNIT, 2 * UNIT + 1)]
    bitmap.resize(11 * UNIT)
    bitmap.resize(10 * UNIT + 3)
    assert dirty(bitmap) == [(10 * UNIT, 3)]
    bitmap.enabled = False
    bitmap.resize(20 * UNIT)
    assert bitmap.count == UNIT


@pytest.mark.parametrize(
    ("name", "granularity", "words"),
    [
        ("", 512, "Bitmap name cannot be empty"),
        ("b" * 1024, 512, "Bitmap name too long"),
        ("b", 256, "Granularity must be power of 2 and at least 512"),
        ("b", 3000, "Granularity must be power of 2 and at least 512"),
    ],
)
def test_what_cannot_be_a_bitmap_is_refused_in_qemus_words(name: str, granularity: int, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        DirtyBitmap(name, 1 << 20, granularity)


def test_a_bitmap_that_would_take_all_memory_is_refused() -> None:
    with pytest.raises(OptionError, match="too small for a disk"):
        DirtyBitmap("b", UNITS_MAX * 512 + 1, 512)
    bitmap = DirtyBitmap("b", UNITS_MAX * 512, 512)
    bitmap.set(0, 1 << 40)
    assert bitmap.count == 1 << 40


def test_a_bitmap_in_use_says_so_in_qemus_words_and_in_its_facts() -> None:
    bitmap = DirtyBitmap("b", 1 << 20, 4096)
    bitmap.require_free()
    bitmap.busy = True
    with pytest.raises(GraphError, match="Bitmap 'b' is currently in use by another operation"):
        bitmap.require_free()
    bitmap.set(5, 1)
    assert list(bitmap.info().items()) == [
        ("name", "b"),
        ("recording", True),
        ("persistent", False),
        ("busy", True),
        ("granularity", 4096),
        ("count", 4096),
    ]


@pytest.mark.parametrize(
    ("cluster_size", "granularity"), [(0, 65536), (512, 4096), (32768, 32768), (1 << 25, 65536)]
)
def test_the_default_granularity_is_the_clusters_within_qemus_limits(
    cluster_size: int, granularity: int
) -> None:
    assert granularity_for(cluster_size) == granularity
