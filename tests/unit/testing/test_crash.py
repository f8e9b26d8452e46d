"""The rules of the medium: what a crash may leave is exactly what the enumeration yields."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from vblk.errors import NodeFailed, StorageError
from vblk.testing import Content, CrashState, Effort, Explorer, Fault, Operation, Recorder, RecordingLeaf
from vblk.testing.content import SECTOR

Run = Callable[[RecordingLeaf], Awaitable[None]]


def sectors(*letters: str) -> bytes:
    return b"".join(letter.encode() * SECTOR if letter != "." else bytes(SECTOR) for letter in letters)


def letters(content: Content) -> str:
    """Return one letter a sector, "." for zeros, up to the length."""
    data = content.read(0, content.length)
    return "".join(
        "." if not any(data[at : at + SECTOR]) else chr(data[at]) for at in range(0, len(data), SECTOR)
    )


def states(run: Run, initial: bytes = b"", *, bound: int = 4096, samples: int = 0) -> list[CrashState]:
    recorder = Recorder()

    async def record() -> None:
        content = Content()
        content.write(0, initial)
        await run(recorder.leaf("f", content))

    asyncio.run(record())
    return list(Explorer(recorder, Effort(bound, samples)).states())


def final(run: Run, initial: bytes = b"") -> set[str]:
    """Return all states at the last instant that differs, each as letters."""
    found = states(run, initial)
    last = max(state.at for state in found)
    recorded = {letters(state.files["f"]) for state in found if state.at == last}
    assert recorded
    return recorded


def everything(run: Run, initial: bytes = b"") -> set[str]:
    return {letters(state.files["f"]) for state in states(run, initial)}


def test_sectors_of_an_unflushed_write_persist_each_for_itself() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        await leaf.write(0, sectors("x", "y"))

    assert everything(run, sectors("a", "b")) == {"ab", "xb", "ay", "xy"}


def test_a_finished_flush_makes_what_ended_before_it_certain() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        await leaf.write(0, sectors("x"))
        await leaf.flush()
        await leaf.write(SECTOR, sectors("y"))

    assert final(run, sectors("a", "b")) == {"xy"}  # "xb" was there before


def test_a_flush_does_not_cover_a_write_that_had_not_ended_when_it_began() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        await asyncio.gather(leaf.write(0, sectors("x")), leaf.flush())
        await leaf.write(SECTOR, sectors("y"))

    assert final(run, sectors("a", "b")) == {"ay", "xy"}


def test_of_two_writes_to_one_sector_either_or_none_persists() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        await leaf.write(0, sectors("x"))
        await leaf.write(0, sectors("y"))

    assert everything(run, sectors("a")) == {"a", "x", "y"}


def test_a_longer_file_may_come_back_short_and_unwritten_parts_are_zeros() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        await leaf.write(2 * SECTOR, sectors("x"))

    assert everything(run, sectors("a")) == {"a", "a..", "a.x"}


def test_a_cut_shows_nothing_from_before_when_the_file_grows_again() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        await leaf.resize(SECTOR)
        await leaf.resize(3 * SECTOR)
        await leaf.write(SECTOR, sectors("x"))

    assert everything(run, sectors("a", "b")) == {"ab", "a", "a..", "ax."}


def test_a_failed_write_leaves_what_it_had_done_to_the_next_flush() -> None:
    recorder = Recorder()

    def fault(operation: Operation) -> Fault | None:
        return Fault(StorageError(5), kept=SECTOR) if operation.began == 0 else None

    async def run() -> None:
        leaf = recorder.leaf("f")
        with pytest.raises(StorageError):
            await leaf.write(0, sectors("x", "x"))
        await leaf.flush()

    recorder.fault = fault
    asyncio.run(run())
    assert {letters(state.files["f"]) for state in Explorer(recorder).states()} == {"", ".", "x"}
    assert {letters(state.files["f"]) for state in Explorer(recorder).states(since=recorder.now)} == {"x"}


def test_what_a_failed_flush_should_have_covered_no_later_flush_covers() -> None:
    recorder = Recorder()

    def failing(_: Operation) -> Fault:
        return Fault(NodeFailed("gone"))

    async def run() -> None:
        leaf = recorder.leaf("f")
        await leaf.write(0, sectors("x"))
        recorder.fault = failing
        with pytest.raises(NodeFailed):
            await leaf.flush()
        recorder.fault = None
        await leaf.flush()

    asyncio.run(run())
    assert {letters(state.files["f"]) for state in Explorer(recorder).states()} == {"", ".", "x"}
    assert len({letters(state.files["f"]) for state in Explorer(recorder).states([recorder.now])}) == 3


def test_states_are_given_once_between_two_marks() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        await leaf.write(0, sectors("x", "y"))
        await leaf.write(0, sectors("x", "y"))

    found = states(run, sectors("a", "b"))
    assert len({state.signature for state in found}) == len(found) == 4


def test_a_large_state_space_is_sampled_within_the_rules() -> None:
    async def run(leaf: RecordingLeaf) -> None:
        for at in range(40):
            await leaf.write(at * SECTOR, sectors("x"))

    found = states(run, sectors(*"a" * 40), bound=64, samples=20)
    assert len(found) > 400
    assert all(set(letters(state.files["f"])) <= {"a", "x"} for state in found)


def test_files_share_one_clock_and_a_flush_covers_its_own_file_only() -> None:
    recorder = Recorder()

    async def run() -> None:
        one, other = recorder.leaf("one"), recorder.leaf("other")
        await one.write(0, sectors("x"))
        await other.write(0, sectors("y"))
        await one.flush()

    asyncio.run(run())
    found = [state for state in Explorer(recorder).states([recorder.now]) if state.at == recorder.now]
    assert {(letters(state.files["one"]), letters(state.files["other"])) for state in found} == {
        ("x", ""),
        ("x", "."),
        ("x", "y"),
    }
