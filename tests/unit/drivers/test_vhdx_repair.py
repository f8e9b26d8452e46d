"""Repairs of VHDX files, finding by finding: what is mended, what is lost, what is left, and why."""

import asyncio
import errno
import itertools
from collections.abc import Callable

import pytest

from tests.support.cancellation import sweep
from tests.support.damaged import DAMAGES, PIECE, Damage, at, content_of, damage, look, repair
from tests.support.small_vhdx import FULLY, MIB, PAYLOAD_AT, MemoryFile, Small, load
from vblk.drivers.vhdx_repair import Repair, repair_image
from vblk.errors import BlockError, CorruptImage, NoSpace, StorageError
from vblk.testing import Action, Content, Fault, Operation, Recorder

ZEROS = bytes(PIECE)
VISIBLE = {"B6", "M3", "M23"}
"""Findings whose repair shows a guest something new, beside blocks that are given up."""


def is_lost(case: Damage, offset: int) -> bool:
    """Tell whether an offset of the disk belongs to a block that is given up."""
    return offset // case.small.block_size in case.lost


def codes(repaired: Repair) -> set[str]:
    return set(repaired.after.counts)


def changes_for_a_guest(before: Content, after: Content) -> bool:
    """Tell whether the data write GUID, to which children link, has changed; assert that the log is empty."""
    images = [load(MemoryFile([(0, each.read(0, each.length))], each.length)) for each in (before, after)]
    if before.pages != after.pages:
        assert images[0].file_write_guid != images[1].file_write_guid
        assert images[1].dirty_log is None
    return images[0].data_write_guid != images[1].data_write_guid


@pytest.mark.parametrize("name", DAMAGES)
def test_a_repair_mends_its_finding_and_changes_nothing_that_read_well(name: str) -> None:
    case = DAMAGES[name]

    async def main() -> None:
        content = content_of(case.small)
        before = await look(content)
        repaired, after = await repair(content)
        assert set(repaired.before.counts) == {*case.fixed, *case.left}
        assert codes(repaired) == set(case.left)
        assert {act.code for act in repaired.left} == set(case.left)
        assert {act.code for act in repaired.done} >= set(case.fixed)
        read = await look(after)
        for offset, old in before.items():
            if is_lost(case, offset):
                assert (isinstance(old, str), read[offset]) == (True, ZEROS)
            else:
                assert isinstance(old, str) or read[offset] == old
        assert changes_for_a_guest(content, after) == bool(case.lost or VISIBLE & {*case.fixed})
        again, unchanged = await repair(after)
        assert (unchanged.length, unchanged.pages) == (after.length, after.pages)
        assert (again.done, codes(again)) == ((), set(case.left))

    asyncio.run(main())


def test_nothing_is_written_into_a_file_of_which_nothing_is_repaired() -> None:
    for name in ("B1", "B15", "B16", "L2-and-more", "H18", "B4-in-part", "H12-and-more"):
        content = content_of(DAMAGES[name].small)
        _, after = asyncio.run(repair(content))
        assert (after.length, after.pages) == (content.length, content.pages), name


def test_what_a_cut_file_still_has_of_a_block_is_kept_and_the_rest_is_said_to_be_lost() -> None:
    repaired, after = asyncio.run(repair(content_of(DAMAGES["B6"].small)))
    assert repaired.lost_bytes == MIB - 4096
    assert after.length == 8 * MIB
    read = asyncio.run(look(after))
    assert read[MIB] == (b"\x43\x01" * 2048).ljust(PIECE, b"\0")
    assert read[2 * MIB - PIECE] == ZEROS


def test_blocks_that_shared_a_place_are_apart_after_the_repair() -> None:
    _, after = asyncio.run(repair(content_of(DAMAGES["B9"].small)))
    places = {int.from_bytes(after.read(3 * MIB + 8 * block, 8), "little") >> 20 for block in range(4)}
    assert len(places) == 4


def test_leaks_are_given_back_and_the_tail_is_cut() -> None:
    case = damage("B20", entries={0: at(0), 4: at(3)}, length=30 * MIB)
    repaired, after = asyncio.run(repair(content_of(case.small), leaks_only=True))
    assert (repaired.leaks_fixed, repaired.corruptions_fixed, codes(repaired)) == (1, 0, set())
    assert after.length == PAYLOAD_AT + MIB


def test_leaks_of_a_damaged_image_wait_for_its_repair() -> None:
    content = content_of(damage(entries={0: at(0), 1: at(0), 4: at(3)}).small)
    repaired, after = asyncio.run(repair(content, leaks_only=True))
    assert codes(repaired) == {"B9", "B20"}
    assert [act.code for act in repaired.left] == ["B20"]
    assert after.pages == content.pages


def test_a_fixed_image_keeps_its_tail() -> None:
    _, after = asyncio.run(repair(content_of(Small(bits=1, length=30 * MIB))))
    assert after.length == 30 * MIB


def test_more_flaws_than_fit_are_mended_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vblk.drivers.vhdx_repair.FLAWS_MAX", 3)
    small = Small(size=1000 * MIB, entries=dict.fromkeys(range(10), FULLY))
    repaired, _ = asyncio.run(repair(content_of(small)))
    assert codes(repaired) == set()
    assert repaired.lost_bytes == 10 * MIB


def test_a_file_that_cannot_be_read_is_refused_and_left_alone() -> None:
    small = Small(headers=(bytes(4096), bytes(4096)))
    leaf = Recorder(recording=False).leaf("image", content_of(small))
    before = leaf.content.copy()
    with pytest.raises(CorruptImage):
        asyncio.run(repair_image(leaf, "damaged.vhdx"))
    assert leaf.content.pages == before.pages


async def assert_mended_later(case: Damage, before: dict[int, bytes | str], content: Content) -> None:
    """Assert that nothing that read well is lost, and that another repair comes to the right end."""
    repaired, after = await repair(content)
    assert codes(repaired) == set(case.left)
    read = await look(after)
    assert all(isinstance(old, str) or read[offset] == old for offset, old in before.items())


@pytest.mark.parametrize("name", ["H12", "B9", "B17", "many"])
@pytest.mark.parametrize("flushes", [False, True], ids=["full-disk", "failed-flush"])
def test_what_fails_ends_a_repair_that_can_be_made_later(name: str, flushes: bool) -> None:
    case = DAMAGES[name]

    async def main() -> None:
        content = content_of(case.small)
        before = await look(content)
        for number in range(200):
            leaf = Recorder(fault=failing_from(number, flushes=flushes)).leaf("image", content)
            try:
                await repair_image(leaf, "damaged.vhdx")
            except BlockError:
                await assert_mended_later(case, before, leaf.content)
                continue
            assert number > 2
            return
        raise AssertionError("the repair never ended")

    asyncio.run(main())


def failing_from(number: int, *, flushes: bool) -> Callable[[Operation], Fault | None]:
    """Let the disk be full from so many writes on, or fail from so many flushes on."""
    count = itertools.count()

    def fault(operation: Operation) -> Fault | None:
        if (operation.action is Action.FLUSH) is not flushes or next(count) < number:
            return None
        failure = StorageError(errno.EIO, "lost", filename="image") if flushes else NoSpace("no space")
        return Fault(failure)

    return fault


@pytest.mark.parametrize("name", ["H12", "L29", "B9", "B17-and-B5"])
def test_a_repair_that_is_cancelled_can_be_made_later(name: str) -> None:
    case = DAMAGES[name]

    async def main() -> None:
        content = content_of(case.small)
        before = await look(content)
        leaf = Recorder().leaf("image", content)

        async def start() -> None:
            nonlocal leaf
            leaf = Recorder().leaf("image", content)
            await repair_image(leaf, "damaged.vhdx")

        async def check() -> None:
            await assert_mended_later(case, before, leaf.content)

        assert await sweep(start, check) > 10

    asyncio.run(main())
