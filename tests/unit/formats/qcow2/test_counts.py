"""Reference counts of every width."""

import random

import pytest

from vblk.formats.qcow2.counts import count_max, counts_of, get_count, set_count, zero_runs


@pytest.mark.parametrize("order", range(7))
def test_a_count_that_was_set_is_there_and_no_other_changed(order: int) -> None:
    dice = random.Random(order)
    page = bytearray(512)
    model = [0] * (512 * 8 >> order)
    for _ in range(500):
        index, count = dice.randrange(len(model)), dice.randrange(count_max(order) + 1)
        set_count(page, order, index, count)
        model[index] = count
    assert list(counts_of(bytes(page), order)) == model
    assert [get_count(page, order, index) for index in range(len(model))] == model


@pytest.mark.parametrize("order", range(7))
def test_runs_of_zeros_are_exactly_the_counts_that_are_zero(order: int) -> None:
    dice = random.Random(order)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        page = bytearray(512)
        number = 512 * 8 >> order
        for index in range(number):
            if dice.random() < density:
                set_count(page, order, index, dice.choice((1, count_max(order))))
        zero = {index for first, end in zero_runs(bytes(page), order) for index in range(first, end)}
        assert zero == {index for index, count in enumerate(counts_of(bytes(page), order)) if not count}


def test_narrow_counts_begin_with_the_lowest_bits() -> None:
    page = bytearray(8)
    set_count(page, 0, 1, 1)
    set_count(page, 1, 6, 2)
    assert bytes(page) == bytes((2, 0b100000, 0, 0, 0, 0, 0, 0))


def test_wide_counts_are_big_endian() -> None:
    page = bytearray(8)
    set_count(page, 4, 1, 0x1234)
    assert bytes(page) == bytes((0, 0, 0x12, 0x34, 0, 0, 0, 0))
