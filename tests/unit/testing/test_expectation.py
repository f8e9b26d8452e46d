"""What a disk may hold after a crash follows from what was asked and when it was answered."""

import pytest

from vblk.testing import Content, Expectation, Violation
from vblk.testing.content import PAGE, SECTOR
from vblk.testing.expectation import Step

SIZE = 16 * PAGE


def disk() -> Expectation:
    return Expectation(Content(SIZE))


def allowed(expectation: Expectation, at: int, sector: int = 0) -> set[str]:
    """Return the first letters that a sector may have, "." for zeros."""
    values = expectation.allowed(at).sectors.get(sector, {bytes(SECTOR)})
    return {chr(value[0]) if value[0] else "." for value in values}


def test_an_unflushed_write_may_be_there_or_not() -> None:
    expectation = disk()
    expectation.write(Step(0, 1), 0, b"a" * SECTOR)
    assert allowed(expectation, 0) == {"."}
    assert allowed(expectation, 1) == {".", "a"}
    assert allowed(expectation, 9) == {".", "a"}


def test_a_flush_demands_what_ended_before_it_began_once_it_has_ended() -> None:
    expectation = disk()
    expectation.write(Step(0, 1), 0, b"a" * SECTOR)
    expectation.flush(Step(2, 5))
    expectation.write(Step(6, 7), 0, b"b" * SECTOR)
    assert allowed(expectation, 5) == {".", "a"}
    assert allowed(expectation, 6) == {"a"}
    assert allowed(expectation, 7) == {"a", "b"}


def test_a_write_under_way_when_the_flush_began_is_not_demanded() -> None:
    expectation = disk()
    expectation.write(Step(0, 3), 0, b"a" * SECTOR)
    expectation.flush(Step(2, 5))
    assert allowed(expectation, 6) == {".", "a"}


@pytest.mark.parametrize("weak", [False, True])
def test_zeros_that_were_under_way_may_follow_a_write_that_began_later(weak: bool) -> None:
    expectation = disk()
    zeros = Step(0, weak=weak)
    expectation.zero(zeros, 0, 4 * PAGE)
    expectation.write(Step(1, 2), 0, b"a" * SECTOR)
    zeros.ended = 3
    expectation.write(Step(4, 5), SECTOR, b"b" * SECTOR)
    expectation.flush(Step(6, 7))
    assert allowed(expectation, 8) == {".", "a"}
    assert allowed(expectation, 8, 1) == {"b"}


@pytest.mark.parametrize("weak", [False, True])
def test_zeros_that_failed_do_not_follow_a_write_that_began_later(weak: bool) -> None:
    expectation = disk()
    zeros = Step(0, weak=weak)
    expectation.zero(zeros, 0, 4 * PAGE)
    zeros.failed = True
    expectation.write(Step(1, 2), 0, b"a" * SECTOR)
    expectation.flush(Step(3, 4))
    assert allowed(expectation, 5) == {"a"}


def test_a_failed_write_stays_allowed_beside_what_replaced_it_at_the_same_time() -> None:
    expectation = disk()
    expectation.write(Step(0, None), 0, b"a" * SECTOR)
    expectation.write(Step(2, 3), 0, b"b" * SECTOR)
    expectation.flush(Step(4, 5))
    assert allowed(expectation, 6) == {"a", "b"}


def test_a_write_with_fua_demands_itself() -> None:
    expectation = disk()
    expectation.write(Step(0, 1, durable=True), 0, b"a" * SECTOR)
    assert allowed(expectation, 1) == {".", "a"}
    assert allowed(expectation, 2) == {"a"}


def test_a_discard_allows_zeros_and_demands_nothing() -> None:
    expectation = disk()
    expectation.write(Step(0, 1), 0, b"a" * SECTOR)
    expectation.flush(Step(2, 3))
    expectation.zero(Step(4, 5, weak=True), 0, SIZE)
    expectation.flush(Step(6, 7))
    assert allowed(expectation, 8) == {"a", "."}


def test_a_cut_and_grown_disk_has_zeros_where_it_was_cut() -> None:
    expectation = disk()
    expectation.write(Step(0, 1), SIZE - SECTOR, b"a" * SECTOR)
    expectation.flush(Step(2, 3))
    expectation.resize(Step(4, 5), SIZE - PAGE)
    expectation.resize(Step(6, 7), SIZE)
    expectation.flush(Step(8, 9))
    assert allowed(expectation, 10, SIZE // SECTOR - 1) == {"."}
    assert expectation.allowed(10).sizes == {SIZE}
    assert expectation.allowed(9).sizes == {SIZE, SIZE - PAGE}


def test_another_blocks_bytes_are_a_violation() -> None:
    expectation = disk()
    expectation.write(Step(0, 1), 0, b"a" * SECTOR)
    right = {0: (b"a" * SECTOR).ljust(PAGE, b"\0")}
    expectation.judge(expectation.allowed(2), SIZE, right)
    with pytest.raises(Violation, match="sector 8"):
        expectation.judge(expectation.allowed(2), SIZE, {1: right[0]})
    with pytest.raises(Violation, match="bytes; allowed are"):
        expectation.judge(expectation.allowed(2), SIZE + PAGE, right)
