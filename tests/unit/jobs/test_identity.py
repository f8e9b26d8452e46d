"""What tells that a file is the one that was known, and unchanged: by the kind of file."""

import time

import pytest
from msgspec.structs import replace

from vblk.jobs.identity import GRACE, Fact, Kind, LastChange, difference

QUIET = LastChange(1000, is_all=True, has_rested=False)
BUSY = LastChange(1000, is_all=False, has_rested=False)
RESTED = LastChange(1000, is_all=False, has_rested=True)


@pytest.mark.parametrize(
    ("kind", "last", "modified", "same"),
    [
        (Kind.STILL, QUIET, 500, True),
        (Kind.STILL, QUIET, 499, False),
        (Kind.STILL, QUIET, 501, False),
        (Kind.WRITTEN, QUIET, 1000, True),
        (Kind.WRITTEN, QUIET, 1001, False),
        (Kind.WRITTEN, BUSY, 1001, True),
        (Kind.WRITTEN, BUSY, 1000 + GRACE, True),
        (Kind.WRITTEN, BUSY, 1001 + GRACE, False),
        (Kind.WRITTEN, RESTED, 1001, False),
        (Kind.LAGGING, QUIET, 1000 + GRACE, True),
        (Kind.LAGGING, QUIET, 1001 + GRACE, False),
        (Kind.LAGGING, RESTED, 1001, False),
        (Kind.CLOSING, QUIET, 1001, True),
        (Kind.CLOSING, RESTED, 1000 + GRACE, True),
        (Kind.CLOSING, RESTED, 1001 + GRACE, False),
        (Kind.LINKED, QUIET, 1 << 60, True),
    ],
)
def test_a_file_is_the_same_unless_it_was_changed_later(
    kind: Kind, last: LastChange, modified: int, same: bool
) -> None:
    then = Fact("/a", 7, kind, 500)
    found = difference([then], [replace(then, modified=modified)], last)
    assert found == (None if same else "'/a' has changed since")


def test_what_this_process_may_have_changed_was_not_changed_by_the_dead_one() -> None:
    now = time.time_ns()
    then = Fact("/a", 7, Kind.WRITTEN, 500)
    assert difference([then], [replace(then, modified=now)], LastChange(now - 1, False, False)) is not None


def test_an_image_with_an_identity_is_known_by_that_alone() -> None:
    then = Fact("/a", 7, Kind.IDENTITY, 500, ("{1}", "{2}"))
    for identity, same in (("{1}", True), ("{2}", True), ("{3}", False)):
        found = difference([then], [replace(then, modified=1 << 60, identities=(identity,))], QUIET)
        assert (found is None) is same
    assert difference([then], [replace(then, kind=Kind.STILL, identities=())], QUIET) is not None


def test_another_file_is_told_by_its_inode_and_other_images_by_their_number() -> None:
    then = Fact("/a", 7, Kind.LINKED, 500)
    assert difference([then], [replace(then, inode=8)], QUIET) == "'/a' is another file than '/a' was"
    assert difference([then], [then, then], QUIET) == "other images belong to the disk"
