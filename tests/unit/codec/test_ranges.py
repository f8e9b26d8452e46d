"""Byte ranges: overlap, and the set of them against a plain model."""

import random
from itertools import pairwise

import pytest

from vblk.codec.ranges import RangeSet, first_overlap, overlap


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 10), (10, 5), False),
        ((0, 10), (9, 5), True),
        ((5, 1), (0, 10), True),
        ((5, 0), (0, 10), False),
        ((1 << 63, 1 << 63), (1 << 64, 1), False),
    ],
)
def test_overlap(a: tuple[int, int], b: tuple[int, int], expected: bool) -> None:
    assert overlap(*a, *b) is expected
    assert overlap(*b, *a) is expected


def test_the_first_overlap_names_both() -> None:
    assert first_overlap([(0, 4, "a"), (4, 4, "b"), (10, 0, "c")]) is None
    assert first_overlap([(20, 4, "z"), (0, 30, "a")]) == ("a", "z", 20)


def test_a_set_of_ranges_equals_a_set_of_bytes() -> None:
    chance = random.Random(3)
    for _ in range(200):
        ranges, model = RangeSet(), set[int]()
        for _ in range(chance.randrange(12)):
            start = chance.randrange(40)
            end = start + chance.randrange(10)
            if chance.random() < 0.7:
                ranges.add(start, end)
                model |= set(range(start, end))
            else:
                ranges.remove(start, end)
                model -= set(range(start, end))
        flat = [byte for start, end in ranges.ranges() for byte in range(start, end)]
        assert flat == sorted(model)
        assert all(a[1] < b[0] for a, b in pairwise(ranges.ranges()))
        low, high = sorted((chance.randrange(50), chance.randrange(50)))
        inside = {byte for start, end in ranges.within(low, high) for byte in range(start, end)}
        assert inside == model & set(range(low, high))
        if low < high:
            assert ranges.contains(low, high) is (set(range(low, high)) <= model)


def test_the_first_range_that_is_long_enough_fits() -> None:
    ranges = RangeSet()
    for start, end in ((0, 2), (5, 9), (20, 30)):
        ranges.add(start, end)
    assert [ranges.first_fit(length) for length in (1, 3, 5, 11)] == [0, 5, 20, None]
