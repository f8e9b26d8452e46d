"""The file of a ledger: what it says survives, and what is none is refused and left alone."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from vblk.aio.threads import ThreadEngine
from vblk.errors import BlockError, JobError
from vblk.jobs.identity import Fact, Kind
from vblk.jobs.ledger import Ledger, Task, region_for
from vblk.units import GIB, MIB, TIB

FACT = Fact("/a", 7, Kind.STILL, 99)
TASK = Task("a mirror", 3 * MIB + 1, MIB, (FACT,), (FACT,))


def in_folder(folder: Path, scenario: Callable[[Callable[[], Ledger]], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = ThreadEngine()
        try:
            await scenario(lambda: Ledger(engine, str(folder / "target")))
        finally:
            await engine.close()

    asyncio.run(main())


def journal_in(folder: Path) -> Path:
    return folder / ".target.vblk-journal"


async def begun(ledger: Ledger) -> Ledger:
    await ledger.claim()
    await ledger.begin(TASK)
    return ledger


def test_what_was_stored_is_there_for_the_next_and_what_was_not_is_not(tmp_path: Path) -> None:
    async def scenario(new: Callable[[], Ledger]) -> None:
        ledger = await begun(new())
        ledger.map.set([0, 2])
        await ledger.store()
        ledger.map.set([3])
        ledger.close()
        again = new()
        await again.claim()
        assert again.is_begun
        assert again.map.content() == b"\1\0\1\0"
        assert again.task is not None
        assert msgspec.structs.replace(again.task, boot="") == TASK
        await again.begin(TASK)
        assert again.map.content() == b"\1\0\1\0"
        again.close()

    in_folder(tmp_path, scenario)


def test_a_claim_that_comes_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(new: Callable[[], Ledger]) -> None:
        ledger = new()
        await ledger.claim()
        assert not ledger.is_begun
        ledger.close()
        assert os.listdir(tmp_path) == []
        ledger = await begun(new())
        await ledger.forget()
        assert os.listdir(tmp_path) == []

    in_folder(tmp_path, scenario)


def test_two_jobs_do_not_go_on_by_one_ledger(tmp_path: Path) -> None:
    async def scenario(new: Callable[[], Ledger]) -> None:
        first = await begun(new())
        with pytest.raises(JobError, match="somebody copies to this target now"):
            await new().claim()
        await first.rest()
        second = new()
        await second.claim()
        second.close()

    in_folder(tmp_path, scenario)


def test_another_job_does_not_go_on_by_it(tmp_path: Path) -> None:
    async def scenario(new: Callable[[], Ledger]) -> None:
        (await begun(new())).close()
        ledger = new()
        await ledger.claim()
        for other in (
            msgspec.structs.replace(TASK, how="a backup"),
            msgspec.structs.replace(TASK, size=MIB),
        ):
            with pytest.raises(JobError, match="it is about another job: a mirror of 3145729 bytes, not a"):
                ledger.require(other)
        changed = msgspec.structs.replace(TASK, source=(msgspec.structs.replace(FACT, modified=100),))
        with pytest.raises(JobError, match="'/a' has changed since the job was begun; remove it to begin"):
            ledger.require(changed)
        ledger.close()

    in_folder(tmp_path, scenario)


def test_a_target_that_is_whole_is_not_copied_to_again(tmp_path: Path) -> None:
    async def scenario(new: Callable[[], Ledger]) -> None:
        ledger = await begun(new())
        await ledger.finish()
        ledger.close()
        with pytest.raises(JobError, match=r"its users were being led to '.*target': go on with that"):
            await new().claim()

    in_folder(tmp_path, scenario)


def test_garbage_is_refused_and_left_alone(tmp_path: Path) -> None:
    async def scenario(new: Callable[[], Ledger]) -> None:
        (await begun(new())).close()
        good = journal_in(tmp_path).read_bytes()
        task_at = int.from_bytes(good[16:24], "little")
        huge = msgspec.json.encode(msgspec.structs.replace(TASK, size=1 << 90))
        negative = msgspec.json.encode(msgspec.structs.replace(TASK, size=-1))
        odd = msgspec.json.encode(msgspec.structs.replace(TASK, region=0))
        for garbage in (
            b"x",
            b'{"version":1,"task":{}}\n' * 1000,
            good[:4096],
            good[: task_at + 9],
            good[:16] + b"\xff" * 8 + good[24:],
            good[:4096] + b"\7" + good[4097:],
            good[:task_at] + huge,
            good[:task_at] + negative,
            good[:task_at] + odd,
            good[:task_at] + b"[" * 100000,
        ):
            journal_in(tmp_path).write_bytes(garbage)
            with pytest.raises(JobError, match="remove it to begin anew"):
                await new().claim()
            assert journal_in(tmp_path).read_bytes() == garbage
        journal_in(tmp_path).unlink()
        journal_in(tmp_path).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BlockError):
            await new().claim()
        assert not (tmp_path / "elsewhere").exists()

    in_folder(tmp_path, scenario)


def test_a_ledger_for_which_there_is_no_room_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes_less(_descriptor: int, data: bytes, _at: int) -> int:
        return len(data) - 1

    async def scenario(new: Callable[[], Ledger]) -> None:
        ledger = new()
        await ledger.claim()
        monkeypatch.setattr(os, "pwrite", writes_less)
        with pytest.raises(BlockError, match="No space left on device"):
            await ledger.begin(TASK)
        assert not ledger.is_begun
        ledger.close()
        assert os.listdir(tmp_path) == []

    in_folder(tmp_path, scenario)


def test_regions_are_as_small_as_their_number_allows() -> None:
    assert region_for(1, MIB, 8192) == MIB
    assert region_for(8 * GIB, MIB, 8192) == MIB
    assert region_for(8 * GIB + 1, MIB, 8192) == 2 * MIB
    assert region_for(64 * TIB, MIB, 8192) == 8 * GIB
