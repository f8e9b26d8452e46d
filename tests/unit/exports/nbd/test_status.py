"""Block status in whole units: what ends within one is told as data, and no more is told than was asked."""

import pytest

from vblk.exports.nbd.status import Extents, _in_units

DATA, HOLE = 0, 3


@pytest.mark.parametrize(
    ("extents", "told"),
    [
        ([(1024, HOLE), (1024, DATA)], [(1024, HOLE), (1024, DATA)]),
        ([(1000, DATA), (24, HOLE)], [(1024, DATA)]),
        ([(1000, HOLE), (24, DATA), (1024, HOLE)], [(512, HOLE), (512, DATA), (1024, HOLE)]),
        ([(100, HOLE), (100, DATA), (100, HOLE), (212, DATA), (512, HOLE)], [(512, DATA), (512, HOLE)]),
        ([(100, HOLE)], [(512, DATA)]),
        ([(512, HOLE), (1, HOLE)], [(512, HOLE), (512, DATA)]),
        ([], []),
    ],
)
def test_extents_end_where_units_end(extents: Extents, told: Extents) -> None:
    assert _in_units(extents, 512, 4096) == told


def test_the_rest_of_a_disk_that_ends_within_a_unit_is_told_as_it_is_long() -> None:
    assert _in_units([(1000, HOLE)], 512, 1000) == [(512, HOLE), (488, DATA)]
