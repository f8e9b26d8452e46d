"""What a file says of regions, wants to say, and may say while it is written."""

from vblk.jobs.region_map import PAGE, RegionMap


def written(regions: RegionMap) -> dict[int, bytes]:
    pages = regions.changes()
    regions.stored()
    return pages


def test_a_region_counts_as_done_when_it_is_stored_and_not_before() -> None:
    regions = RegionMap(4)
    regions.set([1])
    assert not regions.surely_done(1, 2)
    assert not regions.surely_undone(1, 2), "the file may say so at any moment"
    assert written(regions) == {0: b"\0\1\0\0"}
    assert regions.surely_done(1, 2)
    assert not regions.surely_done(1, 3)
    assert regions.surely_undone(2, 4)


def test_a_region_counts_as_undone_when_that_is_stored_and_not_before() -> None:
    regions = RegionMap(3, b"\1\1\0")
    assert regions.surely_done(0, 2)
    assert regions.clear(0, 3)
    assert not regions.surely_undone(0, 1)
    assert written(regions) == {0: b"\0\0\0"}
    assert regions.surely_undone(0, 3)
    assert not regions.clear(0, 3)


def test_what_changes_while_it_is_stored_waits_for_the_next_time() -> None:
    regions = RegionMap(2)
    regions.set([0, 1])
    assert regions.changes() == {0: b"\1\1"}
    regions.clear(0, 1)
    regions.stored()
    assert not regions.surely_undone(0, 1), "the file says that it is done"
    assert not regions.surely_done(0, 1)
    assert regions.surely_done(1, 2)
    assert written(regions) == {0: b"\0\1"}
    assert regions.surely_undone(0, 1)


def test_only_pages_with_changes_are_written() -> None:
    regions = RegionMap(2 * PAGE + 10)
    regions.set([PAGE, 2 * PAGE + 9])
    assert written(regions) == {1: b"\1" + bytes(PAGE - 1), 2: bytes(9) + b"\1"}
    assert written(regions) == {}


def test_runs_of_undone_regions_are_those_that_are_not_wanted() -> None:
    regions = RegionMap(8, b"\0\1\1\0\0\1\0\0")
    assert list(regions.undone(0, 8)) == [(0, 1), (3, 5), (6, 8)]
    assert list(regions.undone(1, 4)) == [(3, 4)]
    assert list(regions.undone(1, 3)) == []
    regions.set([0])
    assert list(regions.undone(0, 3)) == []
