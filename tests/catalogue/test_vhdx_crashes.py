"""Crash and fault cases, C1 to C30: each with the few instants that matter to it.

The large exploration is `tests/crash`; here each case is provoked on purpose,
and what must hold afterwards is asserted by its name.
"""

import asyncio
import errno
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import vblk
from tests.crash import test_vhdx_compaction, test_vhdx_merge
from tests.crash.test_vhdx_create import outcome
from tests.interop.test_vhdx_writing import create
from tests.support.catalogue import run_vblk
from tests.support.crash import Session, explore, images, recover, run_qemu_img, see
from tests.support.crash_workloads import BLOCK, KIB, MAKE, Image, content_of, dynamic
from tests.support.subject import Subject
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.model import pattern
from tests.support.vhdx.records import HEADER_OFFSETS, MIB, seal
from vblk.drivers.vhdx_create import create_image
from vblk.errors import BlockError, NodeFailed, NoSpace, PermissionConflict, StorageError
from vblk.formats.vhdx.create import NewVhdx
from vblk.testing import Action, Content, Effort, Explorer, Fault, Operation, Recorder

FEW = Effort(bound=24, samples=4, corners=6, instants=24)
CHANGES = (Action.WRITE, Action.ZERO, Action.DISCARD, Action.RESIZE)
LOG = range(MIB, 2 * MIB)
METADATA = range(2 * MIB, 4 * MIB)
"""Where images of `dynamic` have their log, and behind it metadata and BAT."""

Work = Callable[[Session], Awaitable[None]]


def crash(
    folder: Path,
    image: Image,
    work: Work,
    *,
    since: Callable[[Session], int] = lambda _: 0,
    effort: Effort = FEW,
    seed: int | None = 1,
) -> Session:
    """Record some work on an image, and judge what crashes leave of it."""

    async def main() -> Session:
        session = Session(image.files, image.chain, image.disk, seed=seed)
        await session.run(work)
        await explore(session, folder, effort=effort, since=since(session), seed=seed or 0)
        return session

    return asyncio.run(main())


def made(make: str, folder: Path) -> Image:
    async def main() -> Image:
        return await MAKE[make](folder)

    return asyncio.run(main())


def operations(session: Session, *actions: Action) -> Iterator[Operation]:
    """Yield what was done to the files, as it began."""
    for event in session.recorder.events:
        if event.operation is not None and not event.ends and event.operation.action in actions:
            yield event.operation


def writes_to(session: Session, *places: int | range) -> list[Operation]:
    """Return the writes that begin at one of some offsets."""
    return [
        each
        for each in operations(session, Action.WRITE)
        if any(each.offset in place if isinstance(place, range) else each.offset == place for place in places)
    ]


def flushed_between(session: Session, first: Operation, second: Operation) -> bool:
    """Tell whether a flush that covers `first` had ended before `second` began."""
    return any(
        first.ended is not None
        and first.ended < flush.began
        and flush.ended is not None
        and flush.ended < second.began
        for flush in operations(session, Action.FLUSH)
    )


async def write_a_little(session: Session) -> None:
    await session.disk.write(0, 4 * KIB)
    await session.disk.flush()
    await session.disk.write(3 * BLOCK, 4 * KIB)
    await session.disk.flush()


def guids(content: Content, at: int) -> tuple[Any, ...] | None:
    """Return sequence number and identities of a header copy, or None if it is damaged."""
    raw = content.read(at, 4096)
    return struct.unpack_from("<Q16s16s16s", raw, 8) if raw == seal(raw, None) else None


def current(content: Content) -> tuple[Any, ...]:
    """Return the identities of the current header."""
    found = [each for at in HEADER_OFFSETS if (each := guids(content, at)) is not None]
    return max(found)[1:]


def test_c01_a_creation_that_crashes_leaves_no_image_or_all_of_it() -> None:
    async def main() -> None:
        recorder = Recorder(seed=1)
        await create_image(recorder.leaf("new"), NewVhdx(size=8 * MIB, block_size=MIB))
        states = list(Explorer(recorder, Effort(bound=8, samples=2, corners=4)).states())
        assert {await outcome(state) for state in states} == {None, 8 * MIB}

    asyncio.run(main())


def test_c02_no_header_ever_names_a_log_without_an_entry(tmp_path: Path) -> None:
    """What is judged finds a log that is named and empty: it would be reported as L2."""
    session = crash(tmp_path, made("dynamic", tmp_path), write_a_little)
    first_entry = writes_to(session, LOG)[0]
    header = writes_to(session, *HEADER_OFFSETS)[0]
    assert flushed_between(session, first_entry, header)


def test_c03_between_the_header_copies_the_identities_are_old_or_new(tmp_path: Path) -> None:
    image = made("dynamic", tmp_path)
    session = crash(tmp_path, image, write_a_little)
    old, new = current(image.files["disk"]), current(session.recorder.leaves["disk"].content)
    first, second = writes_to(session, *HEADER_OFFSETS)[:2]
    assert flushed_between(session, first, second)
    seen: set[bool] = set()
    explorer = Explorer(session.recorder, Effort(bound=64))
    for state in explorer.states(since=first.began, until=second.began + 1):
        found = current(state.files["disk"])
        seen.add(found[0] == old[0])
        assert found[0] == old[0] or (found[1] == new[1] and any(found[2]))
    assert seen == {True, False}


def test_c04_a_torn_header_is_not_believed(tmp_path: Path) -> None:
    """Its former sectors hold bytes behind the fields, so that half of a header shows in its checksum."""
    subject = Subject(tmp_path)
    for header in subject.parts.headers:
        header.reserved = b"\xa5" * 4016
    content = Content.load(subject.write())
    image = Image({"disk": content}, ("disk",), content_of(subject.model))

    async def main() -> Session:
        session = Session(image.files, image.chain, image.disk, seed=1)
        await session.run(write_a_little)
        return session

    session = asyncio.run(main())
    first = writes_to(session, *HEADER_OFFSETS)[0]
    states = Explorer(session.recorder, Effort(bound=512)).states(since=first.began, until=first.began + 1)
    torn = [state for state in states if guids(state.files["disk"], first.offset) is None]
    assert len(torn) == 2**8 - 2
    for state in Random(4).sample(torn, 24):
        recorder = images(state.files)
        assert asyncio.run(recover(recorder, image.chain)).pages == image.disk.pages
        after = asyncio.run(recover(recorder, image.chain, write=True))
        assert asyncio.run(see(recorder, image.chain, clean=True)) == after


def test_c05_an_entry_in_any_subset_of_its_sectors_counts_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    image = made("dynamic", tmp_path)
    session = crash(tmp_path, image, write_a_little, effort=Effort(bound=1))
    entry = writes_to(session, LOG)[-1]
    explorer = Explorer(session.recorder, Effort(bound=1 << 11))
    outcomes: set[bool] = set()
    for state in explorer.states(since=entry.began + 1, until=entry.began + 1):
        seen = asyncio.run(see(images(state.files), image.chain, clean=False))
        session.disk.expectation.judge(session.disk.expectation.allowed(state.at), seen.size, seen.pages)
        outcomes.add(3 * BLOCK // 4096 in seen.pages)
    assert explorer.tally.states > 4
    assert True in outcomes


def test_c06_no_page_goes_home_before_its_entry_is_durable(tmp_path: Path) -> None:
    session = crash(tmp_path, made("dynamic", tmp_path), write_a_little, effort=Effort(bound=1, instants=4))
    pages = writes_to(session, METADATA)
    assert pages
    for page in pages:
        data = session.recorder.leaves["disk"].changes[page].sectors[0].data
        entries = [each for each in writes_to(session, LOG) if each.began < page.began]
        logged = [each for each in entries if flushed_between(session, each, page)]
        assert logged, (page, data)


def test_c07_a_torn_page_is_written_again_by_the_replay(tmp_path: Path) -> None:
    image = made("dynamic", tmp_path)
    session = crash(tmp_path, image, write_a_little, effort=Effort(bound=1, instants=4))
    page = writes_to(session, METADATA)[-1]
    for state in Explorer(session.recorder, Effort(bound=512)).states(since=page.began, until=page.began + 1):
        recorder = images(state.files)
        before = asyncio.run(see(images(state.files), image.chain, clean=False))
        torn = bytearray(state.files["disk"].read(page.offset, 4096))
        torn[8:512] = b"\xee" * 504
        recorder.leaves["disk"].content.write(page.offset, bytes(torn))
        assert asyncio.run(recover(recorder, image.chain)) == before
        assert recorder.leaves["disk"].content.read(page.offset, 4096) != bytes(torn)


async def fill_passes(session: Session) -> None:
    for number in range(40):
        await session.disk.write(number % 8 * BLOCK + 8 * KIB, 4 * KIB)
        if number % 3 == 2:
            await session.disk.write_zeroes((number + 3) % 8 * BLOCK, BLOCK, unmap=True)
        await session.disk.flush()


def small_log(patch: pytest.MonkeyPatch, sectors: int) -> None:
    """Let a pass of the log have so many sectors of 4 KiB."""
    patch.setattr("vblk.formats.vhdx.journal.PASS_SIZE_MAX", sectors * 4096)


def test_c08_the_log_is_overwritten_only_when_a_durable_entry_needs_it_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_log(monkeypatch, 6)
    session = crash(tmp_path, made("dynamic", tmp_path), fill_passes, effort=Effort(8, 2, 4, instants=40))
    entries = writes_to(session, LOG)
    starts = [number for number, entry in enumerate(entries) if entry.offset == MIB + 4096]
    assert len(starts) > 5
    for number in starts[1:]:
        parked = entries[number - 1]
        assert parked.offset == 2 * MIB - 4096
        assert flushed_between(session, parked, entries[number])


@pytest.mark.parametrize("sectors", [2, 3, 4, 5])
def test_c09_a_full_log_makes_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sectors: int) -> None:
    """Two sectors are what one page takes; each one more lets a pass end one sector short of an entry."""
    small_log(monkeypatch, sectors)

    async def load(session: Session) -> None:
        async def writer(number: int) -> None:
            for turn in range(6):
                await session.disk.write((number + turn) % 8 * BLOCK + number * 8 * KIB, 4 * KIB, fua=True)

        await asyncio.gather(*(writer(number) for number in range(6)))

    crash(tmp_path, made("dynamic", tmp_path), load, effort=Effort(4, 1, 2, instants=12))


def test_c10_a_recovery_that_crashes_a_hundred_times_ends_with_the_same_disk(tmp_path: Path) -> None:
    image = made("littered", tmp_path)
    lot = Random(10)

    async def main() -> None:
        session = Session(image.files, image.chain, image.disk, seed=2)
        await session.run(write_a_little)
        states = [
            state
            for state in Explorer(session.recorder, FEW).states()
            if any(
                guids(state.files["disk"], at) and any(current(state.files["disk"])[2])
                for at in HEADER_OFFSETS
            )
        ]
        files = lot.choice(states).files
        expected = await see(images(files), image.chain, clean=False)
        crashed = 0
        for number in range(100):
            recorder = images(files, recording=True)
            assert await recover(recorder, image.chain) == expected
            choices = list(Explorer(recorder, Effort(bound=16, samples=2, corners=4), number).states())
            dirty = [each for each in choices if any(current(each.files["disk"])[2])]
            files = lot.choice(dirty).files
            assert await see(images(files), image.chain, clean=False) == expected
            crashed += 1
        recorder = images(files)
        assert await recover(recorder, image.chain) == expected
        assert await see(recorder, image.chain, clean=True) == expected
        assert crashed == 100

    asyncio.run(main())


def test_c11_a_file_that_lost_its_extension_is_made_longer_by_the_replay(tmp_path: Path) -> None:
    """The length that was asked for last may be lost as long as no flush was answered."""
    image = made("dynamic", tmp_path)

    async def main() -> None:
        session = Session(image.files, image.chain, image.disk, seed=1)
        await session.run(write_a_little)
        short = 0
        for state in Explorer(session.recorder, Effort(bound=64, samples=8)).states():
            content = state.files["disk"]
            seen = await see(images(state.files), image.chain, clean=False)
            session.disk.expectation.judge(session.disk.expectation.allowed(state.at), seen.size, seen.pages)
            recorder = images(state.files)
            assert await recover(recorder, image.chain) == seen
            short += any(current(content)[2]) and content.length < 5 * MIB
        assert short

    asyncio.run(main())


async def reuse(session: Session) -> None:
    """Give block 0 back, and let block 1 have its space."""
    await session.disk.write(0, 64 * KIB)
    await session.disk.flush()
    await session.disk.write_zeroes(0, BLOCK, unmap=True)
    await session.disk.flush()
    await session.disk.write(BLOCK + 16 * KIB, 8 * KIB)
    await session.disk.flush()


def payload_before_entry(session: Session, guest_tag: bytes) -> None:
    """Assert that the write of some bytes was durable before the next entry of the log began."""
    leaf = session.recorder.leaves[session.chain[0]]
    payload = next(
        each
        for each in operations(session, Action.WRITE)
        if each.offset >= 4 * MIB and leaf.changes[each].sectors[0].data[:8] == guest_tag
    )
    entry = next(
        each
        for each in operations(session, Action.WRITE)
        if each.offset in LOG and each.began > payload.began
    )
    assert flushed_between(session, payload, entry)


async def write_once(session: Session) -> None:
    await session.disk.write(BLOCK, 4 * KIB, fua=True)


def test_c12_payload_in_used_space_is_durable_before_the_entry_that_maps_it(tmp_path: Path) -> None:
    session = crash(
        tmp_path,
        made("littered", tmp_path),
        lambda session: session.disk.write(BLOCK + 8 * KIB, 4 * KIB, fua=True),
    )
    payload_before_entry(session, (1).to_bytes(8, "little"))


def test_c13_space_of_a_trimmed_block_never_shows_its_next_owner(tmp_path: Path) -> None:
    crash(tmp_path, made("dynamic", tmp_path), reuse, effort=Effort(24, 6, 8, instants=60))


async def trim_then_write(session: Session) -> None:
    await session.disk.write(0, 64 * KIB)
    await session.disk.flush()
    await session.disk.discard(0, BLOCK)
    await session.disk.write(16 * KIB, 8 * KIB)
    await session.disk.flush()


@pytest.mark.parametrize("make", ["dynamic", "fixed", "child"])
def test_c14_a_block_trimmed_and_written_again_is_old_zero_or_new(tmp_path: Path, make: str) -> None:
    crash(tmp_path, made(make, tmp_path), trim_then_write)


@pytest.mark.parametrize("turns", [3, 6, 12])
def test_c15_what_a_write_into_used_space_leaves_out_is_zeros(tmp_path: Path, turns: int) -> None:
    async def cancel_then_write(session: Session) -> None:
        task = asyncio.ensure_future(session.disk.write(2 * BLOCK + 4 * KIB, 8 * KIB))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await session.disk.write(BLOCK + 4 * KIB, 512)
        await session.disk.write(2 * BLOCK + 32 * KIB, 512)
        await session.disk.flush()

    crash(tmp_path, made("littered", tmp_path), cancel_then_write)


@pytest.mark.parametrize("make", ["child", "child_4096"])
def test_c16_sectors_are_durable_before_their_bits(tmp_path: Path, make: str) -> None:
    session = crash(
        tmp_path, made(make, tmp_path), lambda session: session.disk.write(BLOCK, 4 * KIB, fua=True)
    )
    payload_before_entry(session, (1).to_bytes(8, "little"))


async def trim_then_write_a_part(session: Session) -> None:
    """Of block 0, which the child holds in part; and of block 4, whose bits say anything."""
    for block in (0, 4):
        await session.disk.write_zeroes(block * BLOCK, BLOCK, unmap=True)
        await session.disk.flush()
        await session.disk.write(block * BLOCK + 32 * KIB, 4 * KIB)
        await session.disk.flush()


@pytest.mark.parametrize("make", ["child", "child_4096"])
def test_c17_bits_of_a_former_time_are_not_seen(tmp_path: Path, make: str) -> None:
    crash(tmp_path, made(make, tmp_path), trim_then_write_a_part)


def test_c18_a_sector_bitmap_in_used_space_begins_with_zeros(tmp_path: Path) -> None:
    """An empty child whose file has all ones lying about where its first bitmap will go."""
    chain = Chain(tmp_path)
    chain.base([(0, 128 * KIB), (2 * BLOCK - 64 * KIB, 128 * KIB)], size=8 * MIB)
    chain.child()
    files = {level.path.stem: Content.load(level.path) for level in chain.levels}
    content = files[chain.top.path.stem]
    content.write(-(-content.length // MIB) * MIB, b"\xff" * (3 * MIB))
    image = Image(files, (chain.top.path.stem, "base"), content_of(chain.top.model))

    async def parts(session: Session) -> None:
        await session.disk.write(4 * KIB, 4 * KIB)
        await session.disk.write(BLOCK + 4 * KIB, 4 * KIB)
        await session.disk.flush()

    crash(tmp_path, image, parts)


@pytest.mark.parametrize("make", ["dynamic", "fixed", "child"])
def test_c19_a_growing_disk_has_its_old_size_or_its_new_one(tmp_path: Path, make: str) -> None:
    async def grow(session: Session) -> None:
        await session.disk.resize(11 * MIB)
        await session.disk.flush()

    crash(tmp_path, made(make, tmp_path), grow)


def test_c20_growing_within_the_last_block_shows_zeros(tmp_path: Path) -> None:
    vhdx = Vhdx(size=7 * MIB + 64 * KIB, blocks={7: Block(State.FULLY_PRESENT, pattern(1, 7 * MIB, MIB))})
    content = Content.load(vhdx.build(tmp_path / "padded.vhdx"))
    image = Image({"disk": content}, ("disk",), content_of(vhdx.model()))

    async def grow(session: Session) -> None:
        await session.disk.resize(7 * MIB + 512 * KIB)
        await session.disk.flush()
        await session.disk.resize(9 * MIB)
        await session.disk.flush()

    crash(tmp_path, image, grow)


def test_c21_no_crash_leaves_the_file_shorter_than_its_log_says(tmp_path: Path) -> None:
    """Such a file is refused as truncated, which no state may be."""

    async def shrink(session: Session) -> None:
        for block in range(8):
            await session.disk.write(block * BLOCK, 4 * KIB)
        await session.disk.flush()
        await session.disk.resize(2 * MIB)
        await session.disk.flush()
        await session.reopen()
        await session.disk.write(BLOCK, 4 * KIB)

    session = crash(tmp_path, made("dynamic", tmp_path), shrink, effort=Effort(24, 4, 6, instants=60))
    lengths = [each.length for each in operations(session, Action.RESIZE)]
    assert lengths[-1] < max(lengths)


@pytest.mark.parametrize("workload", ["compact", "compact_and_reuse"])
def test_c22_a_compaction_that_crashes_leaves_the_same_disk(tmp_path: Path, workload: str) -> None:
    work = test_vhdx_compaction.WORKLOADS[workload]
    asyncio.run(test_vhdx_compaction.explored(tmp_path, 5, work, FEW))


@pytest.mark.parametrize("name", ["one_level", "a_middle_range"])
def test_c23_a_merge_that_crashes_leaves_a_chain_that_reads_the_same(tmp_path: Path, name: str) -> None:
    case = test_vhdx_merge.CASES[name](tmp_path)
    assert asyncio.run(test_vhdx_merge.explore(case, 3, Effort(1, 1, 1, instants=12)))


# Faults


def failing(
    session: Session, place: range, action: Action, error: BlockError, times: int = 1
) -> list[Operation]:
    """Let the next operations of a kind on some place of the file fail; return those that did."""
    met: list[Operation] = []

    def fault(operation: Operation) -> Fault | None:
        inside = operation.offset in place or operation.offset + operation.length in place
        if operation.action is not action or len(met) >= times or not inside:
            return None
        met.append(operation)
        return Fault(error)

    session.recorder.fault = fault
    return met


ANYWHERE = range(1 << 62)
EIO = StorageError(errno.EIO)
FULL = NoSpace("No space left on device")


def test_c24_an_fsync_that_failed_poisons_until_the_image_is_opened_anew(tmp_path: Path) -> None:
    async def main() -> None:
        image = await dynamic(tmp_path)
        session = Session(image.files, image.chain, image.disk, seed=1, tolerant=True)
        await session.open()
        await write_a_little(session)
        await session.disk.write(5 * BLOCK, 4 * KIB)
        assert failing(session, ANYWHERE, Action.FLUSH, EIO) == []
        for _ in range(3):
            await session.disk.flush()
        assert [type(each) for each in session.disk.failures][1:] == [NodeFailed, NodeFailed]
        await session.close()
        session.recorder.fault = None
        await session.open()
        await session.disk.flush()
        await session.close()
        assert len(session.disk.failures) == 4
        await explore(session, tmp_path, effort=FEW)

    asyncio.run(main())


@pytest.mark.parametrize(("where", "poisons"), [("extension", False), ("log", False), ("page", True)])
def test_c25_no_space_fails_cleanly(
    tmp_path: Path, where: str, poisons: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_log(monkeypatch, 4)

    async def main() -> None:
        image = await dynamic(tmp_path)
        session = Session(image.files, image.chain, image.disk, seed=1, tolerant=True)
        await session.open()
        disk = session.disk
        if where != "extension":
            await disk.write(0, 4 * KIB, fua=True)
        place = {"extension": ANYWHERE, "log": LOG, "page": METADATA}[where]
        action = Action.RESIZE if where == "extension" else Action.WRITE
        met = failing(session, place, action, FULL, times=2)
        for block in range(6):
            await disk.write(block * BLOCK, 4 * KIB)
            await disk.flush()
        assert met
        assert isinstance(disk.failures[0], NoSpace | NodeFailed)
        session.recorder.fault = None
        failures = len(disk.failures)
        await disk.write(7 * BLOCK, 4 * KIB, fua=True)
        assert (len(disk.failures) > failures) is poisons
        await session.close()
        await explore(session, tmp_path, effort=FEW)

    asyncio.run(main())


def test_c26_a_cancelled_write_gives_its_space_and_its_gate_back(tmp_path: Path) -> None:
    """Again and again, at every turn: the file is never longer than one block needs."""

    async def main() -> None:
        image = await dynamic(tmp_path)
        session = Session(image.files, image.chain, image.disk, seed=None)
        await session.open()
        for turns in range(40):
            task = asyncio.ensure_future(session.disk.write(BLOCK + 4 * KIB, 4 * KIB))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await session.disk.write(BLOCK + 4 * KIB, 4 * KIB)
        await session.close()
        assert session.recorder.leaves["disk"].size == image.files["disk"].length // MIB * MIB + BLOCK
        await explore(session, tmp_path, effort=FEW, since=session.recorder.now - 8)

    asyncio.run(main())


def test_c27_a_killed_process_leaves_what_both_vblk_and_qemu_replay(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    asyncio.run(create(path, NewVhdx(size=8 * MIB, block_size=MIB)))
    killed = run_vblk(
        "io",
        "-f",
        "vhdx",
        "-c",
        "write -P 7 1M 64k",
        "-c",
        "flush",
        "-c",
        "write -P 9 3M 4k",
        "-c",
        "flush",
        "-c",
        "sigraise 9",
        path,
    )
    assert killed.returncode == -9
    ours = tmp_path / "ours.vhdx"
    shutil.copyfile(path, ours)

    async def both() -> None:
        expected = b"\7" * (64 * KIB)
        async with vblk.open(path) as disk:
            before = await disk.read(0, disk.size)
            assert before[MIB : MIB + len(expected)] == expected
        async with vblk.open(ours, read_only=False) as disk:
            assert await disk.read(0, disk.size) == before
        (tmp_path / "truth.raw").write_bytes(before)

    asyncio.run(both())
    run_qemu_img("check", "-f", "vhdx", "-r", "all", path)
    for image in (path, ours):
        run_qemu_img("check", "-f", "vhdx", image)
        run_qemu_img("compare", "-f", "vhdx", "-F", "raw", image, tmp_path / "truth.raw")


def test_c28_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    asyncio.run(create(path, NewVhdx(size=8 * MIB, block_size=MIB)))

    async def two() -> None:
        async with vblk.open(path, read_only=False) as disk:
            await disk.write(0, b"first")
            with pytest.raises(PermissionConflict):
                async with vblk.open(path, read_only=False):
                    pass
            other = await asyncio.to_thread(run_vblk, "io", "-f", "vhdx", "-c", "write 0 512", path)
            assert other.returncode == 1
            assert "lock" in other.stderr
            qemu = ["qemu-io", "-f", "vhdx", "-c", "write 0 512", str(path)]
            ran = await asyncio.to_thread(subprocess.run, qemu, capture_output=True, text=True, timeout=60)
            assert "lock" in ran.stdout + ran.stderr
            assert await disk.read(0, 5) == b"first"

    asyncio.run(two())


def test_c29_short_writes_and_reads_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.vhdx"
    asyncio.run(create(path, NewVhdx(size=8 * MIB, block_size=MIB)))
    data = Random(29).randbytes(300 * KIB)
    shortened = 0
    pwrite, preadv = os.pwrite, os.preadv

    def short_pwrite(fd: int, buffer: bytes, offset: int) -> int:
        nonlocal shortened
        shortened += 1
        return pwrite(fd, memoryview(buffer)[: max(1, len(buffer) // 2)], offset)

    def short_preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        view = memoryview(buffers[0])
        return preadv(fd, [view[: max(1, len(view) // 2)]], offset, flags)

    async def write_and_read() -> None:
        async with vblk.open(path, read_only=False) as disk:
            await disk.write(700 * KIB, data)
            await disk.flush()
            assert await disk.read(700 * KIB, len(data)) == data

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", short_pwrite)
        patch.setattr(os, "preadv", short_preadv)
        asyncio.run(write_and_read())
    assert shortened > 20
    asyncio.run(write_and_read())
    run_qemu_img("check", "-f", "vhdx", path)


def test_c29_a_file_that_may_not_grow_fails_the_write_and_stays_whole(tmp_path: Path) -> None:
    """The kernel writes what it may, then says EFBIG; what was there before is there."""
    path = tmp_path / "disk.vhdx"
    asyncio.run(create(path, NewVhdx(size=8 * MIB, block_size=MIB)))
    assert run_vblk("io", "-f", "vhdx", "-c", "write -P 5 0 64k", path).returncode == 0
    limit = path.stat().st_size + 100_000
    command = [
        str(Path(sys.executable).with_name("vblk")),
        "io",
        "-f",
        "vhdx",
        "-c",
        "write -P 6 2M 4M",
        str(path),
    ]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "File too large" in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    assert (
        run_vblk("io", "-f", "vhdx", "-r", "-c", "read -P 5 0 64k", "-c", "read -P 0 2M 4M", path).returncode
        == 0
    )
    run_qemu_img("check", "-f", "vhdx", path)


def test_c30_a_last_header_that_failed_leaves_the_log_to_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        image = await dynamic(tmp_path)
        session = Session(image.files, image.chain, image.disk, seed=1, tolerant=True)
        await session.open()
        await write_a_little(session)
        met = failing(session, range(192 * KIB), Action.WRITE, EIO, times=1)
        await session.close()
        assert met
        session.recorder.fault = None
        content = session.recorder.leaves["disk"].content
        assert any(current(content)[2]), "the log is named still"
        seen = await see(images({"disk": content}), image.chain, clean=False)
        recorder = images({"disk": content.copy()})
        assert await recover(recorder, image.chain) == seen
        assert not any(current(recorder.leaves["disk"].content)[2])
        await explore(session, tmp_path, effort=FEW)

    asyncio.run(main())


def test_every_number_of_the_section_has_a_case() -> None:
    names = " ".join(name for name in globals() if name.startswith("test_c"))
    carried = {int(number) for number in re.findall(r"test_c(\d\d)_", names)}
    assert carried == set(range(1, 31))
