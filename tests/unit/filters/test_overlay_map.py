"""The map of a temporary overlay: every byte is below, zero, or at its place in the store."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vblk.filters.overlay_map import Gap, OverlayMap, Run

SIZE = 64

Place = int | str
"""Where a byte is: its place in the store, `zero` or `below`."""


def places_of(parts: list[Run | Gap]) -> list[Place]:
    places: list[Place] = []
    for part in parts:
        for position in range(part.start, part.end):
            if isinstance(part, Gap):
                places.append("below")
            else:
                places.append("zero" if part.slot is None else part.slot + position - part.start)
    return places


def write(overlay: OverlayMap, offset: int, length: int) -> list[Run]:
    places = overlay.place(offset, length)
    overlay.set_data(places)
    return places


operations = st.lists(
    st.tuples(st.sampled_from(["write", "zero"]), st.integers(0, SIZE - 1), st.integers(1, SIZE)), max_size=40
)


@given(operations)
def test_the_map_says_of_every_byte_what_a_list_of_bytes_says(
    steps: list[tuple[str, int, int]],
) -> None:
    overlay = OverlayMap()
    model: list[Place] = ["below"] * (2 * SIZE)
    for verb, offset, length in steps:
        if verb == "write":
            for run in write(overlay, offset, length):
                assert run.slot is not None
                for position in range(run.start, run.end):
                    model[position] = run.slot + position - run.start
        else:
            unused = overlay.set_zero(offset, length)
            kept = {place for place in model if isinstance(place, int)}
            for run in unused:
                assert run.slot is not None
                assert set(range(run.slot, run.slot + run.end - run.start)) <= kept
            model[offset : offset + length] = ["zero"] * length
        assert places_of(overlay.lookup(0, 2 * SIZE)) == model
        assert places_of(overlay.lookup(offset, length)) == model[offset : offset + length]
        stored = [place for place in model if isinstance(place, int)]
        assert len(stored) == len(set(stored)), "two bytes share a place"


@given(operations)
def test_no_run_continues_another(steps: list[tuple[str, int, int]]) -> None:
    overlay = OverlayMap()
    for verb, offset, length in steps:
        if verb == "write":
            write(overlay, offset, length)
        else:
            overlay.set_zero(offset, length)
    parts = overlay.lookup(0, 2 * SIZE)
    for first, second in pairwise(parts):
        assert first.end == second.start
        assert not (isinstance(first, Run) and isinstance(second, Run) and first.continued_by(second))
    assert len(overlay) == sum(isinstance(part, Run) for part in parts)


def test_nothing_is_seen_before_it_is_published() -> None:
    overlay = OverlayMap()
    places = overlay.place(10, 5)
    assert overlay.lookup(0, 20) == [Gap(0, 20)]
    overlay.set_data(places)
    assert overlay.lookup(0, 20) == [Gap(0, 10), Run(10, 15, 0), Gap(15, 20)]


def test_writing_in_place_takes_no_new_space() -> None:
    overlay = OverlayMap()
    write(overlay, 0, 100)
    write(overlay, 10, 50)
    assert overlay.store_end == 100
    assert write(overlay, 90, 20) == [Run(90, 110, 90)]
    assert overlay.store_end == 110


def test_zeros_give_their_space_back() -> None:
    overlay = OverlayMap()
    write(overlay, 0, 100)
    assert overlay.set_zero(20, 10) == [Run(20, 30, 20)]
    assert overlay.set_zero(20, 10) == []
    assert write(overlay, 20, 10) == [Run(20, 30, 100)]


def test_an_empty_range_has_no_parts() -> None:
    overlay = OverlayMap()
    assert overlay.lookup(5, 0) == []
    assert overlay.place(5, 0) == []
    assert overlay.set_zero(5, 0) == []
    assert len(overlay) == 0
