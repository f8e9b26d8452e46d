"""A commit of layers that did not come to its end goes on where it was, if nothing has changed meanwhile."""

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.chain_lab import SIZE, ChainLab, chain_lab, in_chain_lab, make_chain, names_of
from tests.support.commits import CHAINS, commit
from vblk.errors import BlockError, JobError, StorageError, Unsupported
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.jobs.block_job import OnError
from vblk.jobs.commit_journal import CommitJournal, FinishedCommit
from vblk.jobs.identity import GRACE
from vblk.jobs.live_chain import Stretch, standing
from vblk.jobs.live_commit import CommitJob
from vblk.jobs.states import Status
from vblk.protocols.memory import MemoryNode

two_chains = pytest.mark.parametrize("formats", [CHAINS["raw"], CHAINS["vhdx"]], ids=["qcow2", "vhdx"])
PIECES = 3


def journal_for(room: ChainLab, top: int = 1, base: int = -1) -> CommitJournal:
    """Return the journal of a commit, claimed."""
    journal = CommitJournal(Stretch.between(room.images[top], room.images[base]))
    journal.claim()
    return journal


async def failing(room: ChainLab, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let a commit fail when some pieces are done; return how far it came."""
    monkeypatch.setattr("vblk.jobs.sweep.WORKERS", 1)
    carry = CommitJob.carry
    calls = 0

    async def carried(self: CommitJob, offset: int, length: int) -> None:
        nonlocal calls
        calls += 1
        if calls > PIECES:
            raise StorageError(errno.EIO)
        await carry(self, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(CommitJob, "carry", carried)
        job = await commit(room, journal=journal_for(room))
        await job.ended()
    assert job.error == "Input/output error"
    assert 0 < job.current < SIZE
    return job.current


def begun(
    folder: Path, formats: list[str], monkeypatch: pytest.MonkeyPatch, *, dead: bool = True
) -> tuple[bytes, Path, int]:
    """Make a chain whose commit was begun; return the disk, the journal, and how far it came.

    With `dead` as if the process had been killed: nobody noted that the base was at rest.
    """
    content = make_chain(folder, formats)

    async def main() -> int:
        async with chain_lab(folder, formats, content) as room:
            return await failing(room, monkeypatch)

    done = asyncio.run(main())
    journal = folder / f".{names_of(formats)[0]}.vblk-journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["done"] == done
    if dead:
        journal.write_bytes(b"".join(lines[:-1]))
    return content, journal, done


def later(
    folder: Path, formats: list[str], content: bytes, look: Callable[[ChainLab], Awaitable[None]]
) -> None:
    """Open the chain anew and look at it."""

    async def main() -> None:
        async with chain_lab(folder, formats, content) as room:
            await look(room)

    asyncio.run(main())


def refusal(folder: Path, formats: list[str], content: bytes) -> str:
    """Return why a commit does not go on."""
    said = ""

    async def look(room: ChainLab) -> None:
        nonlocal said
        with pytest.raises(JobError) as caught:
            journal_for(room)
        said = str(caught.value)

    later(folder, formats, content, look)
    return said


@two_chains
@pytest.mark.parametrize("dead", [True, False], ids=["killed", "failed"])
def test_it_goes_on_where_it_was(
    tmp_path: Path, formats: list[str], monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    content, journal, done = begun(tmp_path, formats, monkeypatch, dead=dead)
    carried: list[int] = []
    carry = CommitJob.carry

    async def noted(self: CommitJob, offset: int, length: int) -> None:
        carried.append(offset)
        await carry(self, offset, length)

    monkeypatch.setattr(CommitJob, "carry", noted)

    async def look(room: ChainLab) -> None:
        job = await commit(room, journal=journal_for(room))
        await job.ended()
        assert job.error is None
        await room.check()
        assert room.chain() == [names_of(formats)[-1], names_of(formats)[0]]

    later(tmp_path, formats, content, look)
    assert carried
    assert min(carried) >= done
    assert not journal.exists()


def test_a_commit_that_comes_to_its_end_at_once_leaves_no_journal(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, journal=journal_for(room))
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, CHAINS["mixed"], scenario)
    assert not list(tmp_path.glob(".*"))


def test_a_cancel_keeps_the_journal(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, journal=journal_for(room), speed=1)
        while not job.total:
            await room.guest.flush()
        job.cancel()
        await job.ended()

    in_chain_lab(tmp_path, CHAINS["vhdx"], scenario)
    assert [path.name for path in tmp_path.glob(".*")] == [".0.vhdx.vblk-journal"]


def test_how_far_it_is_is_noted_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vblk.jobs.resumption.PERIOD", 0.0005)
    monkeypatch.setattr("vblk.jobs.sweep.WORKERS", 1)
    noted: list[int] = []
    note = CommitJournal.note

    def watched(self: CommitJournal, done: int) -> None:
        noted.append(done)
        note(self, done)

    monkeypatch.setattr(CommitJournal, "note", watched)

    async def scenario(room: ChainLab) -> None:
        job = await commit(room, journal=journal_for(room))
        await job.ended()

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)
    assert len(noted) > 1
    assert noted == sorted(noted)
    assert noted[-1] == SIZE


@two_chains
def test_a_layer_that_has_changed_is_refused(
    tmp_path: Path, formats: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, journal, _ = begun(tmp_path, formats, monkeypatch)
    name = names_of(formats)[1]

    async def change() -> None:
        async with chain_lab(tmp_path, formats[:2], content) as room:
            await room.guest.write(0, b"x" * 512)

    if formats[0] == "vhdx":
        asyncio.run(change())
        with pytest.raises(BlockError, match="parent linkage mismatch"):  # the format itself says it
            later(tmp_path, formats, content, _pass)
        return
    asyncio.run(change())
    said = refusal(tmp_path, formats, content)
    assert f"{name}' has changed since the commit was begun; remove it to begin anew" in said
    journal.unlink()
    later(tmp_path, formats, content, _claim)


async def _pass(_: ChainLab) -> None:
    pass


async def _claim(room: ChainLab) -> None:
    journal_for(room).close()


def test_a_base_that_was_written_to_after_the_death_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = CHAINS["raw"]
    content, journal, _ = begun(tmp_path, formats, monkeypatch)
    later(tmp_path, formats, content, _claim)
    late = journal.stat().st_mtime_ns + GRACE + 10**9
    os.utime(tmp_path / "0.raw", ns=(late, late))
    assert "0.raw' has changed since the commit was begun" in refusal(tmp_path, formats, content)


def test_a_base_that_was_written_to_after_a_failure_is_refused_however_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = CHAINS["raw"]
    content, _, _ = begun(tmp_path, formats, monkeypatch, dead=False)
    later(tmp_path, formats, content, _claim)
    os.utime(tmp_path / "0.raw")
    assert "0.raw' has changed since the commit was begun" in refusal(tmp_path, formats, content)


def test_after_a_failure_of_the_machine_the_times_may_lie_further_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = CHAINS["raw"]
    content, journal, _ = begun(tmp_path, formats, monkeypatch)
    late = journal.stat().st_mtime_ns + GRACE + 10**9
    os.utime(tmp_path / "0.raw", ns=(late, late))
    monkeypatch.setattr("vblk.jobs.commit_journal.boot_id", lambda: "another")
    later(tmp_path, formats, content, _claim)


def test_a_vhdx_base_that_somebody_else_wrote_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = CHAINS["vhdx"]
    content, journal, _ = begun(tmp_path, formats, monkeypatch)
    lines = journal.read_bytes().splitlines()
    mark = {"done": 1, "base": ["{00000000-0000-0000-0000-000000000000}"]}
    journal.write_bytes(lines[0] + b"\n" + json.dumps(mark).encode() + b"\n")
    assert "0.vhdx' has changed since the commit was begun" in refusal(tmp_path, formats, content)


def test_other_layers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = CHAINS["qcow2"]
    content, _, _ = begun(tmp_path, formats, monkeypatch)

    async def look(room: ChainLab) -> None:
        with pytest.raises(JobError, match=r"the commit that was begun is of '.*2.qcow2', '.*1.qcow2'"):
            journal_for(room, top=2)

    later(tmp_path, formats, content, look)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"not ours\n", "its first line is no journal's"),
        (
            b'{"version": 1, "task": {"sources": [], "how": ""}, "part": 1}\n',
            "its first line is no journal's",
        ),
        (b'{"version": 9, "commit": [], "base": 1, "boot": ""}\n', "it is of version 9"),
    ],
)
def test_a_journal_of_something_else_is_left_alone(tmp_path: Path, text: bytes, said: str) -> None:
    content = make_chain(tmp_path, CHAINS["qcow2"])
    journal = tmp_path / ".0.qcow2.vblk-journal"
    journal.write_bytes(text)
    assert said in refusal(tmp_path, CHAINS["qcow2"], content)
    assert journal.read_bytes() == text


def test_a_torn_line_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = CHAINS["qcow2"]
    content, journal, done = begun(tmp_path, formats, monkeypatch)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"done": 99999')

    async def look(room: ChainLab) -> None:
        claimed = journal_for(room)
        assert claimed.done == done
        claimed.close()

    later(tmp_path, formats, content, look)
    assert journal.read_bytes() == whole


def test_two_commits_into_one_base_do_not_meet(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        first = journal_for(room)
        with pytest.raises(JobError, match="somebody copies to this target now"):
            journal_for(room)
        first.close()

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_file_here_cannot_be_resumed() -> None:
    async def main() -> None:
        async with Graph() as graph:
            memory = MemoryNode("m", size=4096)
            graph.add(memory)
            with pytest.raises(Unsupported, match="nobody can tell whether it has changed meanwhile"):
                CommitJournal(Stretch((), memory))

    asyncio.run(main())


def finished(room: ChainLab) -> FinishedCommit:
    chain: list[Node] = list(standing(room.guest.node))
    return FinishedCommit(chain)


def test_a_commit_that_died_with_its_links_changed_is_known_by_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = CHAINS["qcow2"]
    content = make_chain(tmp_path, formats)
    monkeypatch.setattr(CommitJournal, "end", CommitJournal.touch)

    async def die(room: ChainLab) -> None:
        with pytest.raises(JobError, match="no commit to it is to be resumed"):
            finished(room)
        job = await commit(room, journal=journal_for(room))
        await job.ended()

    async def look(room: ChainLab) -> None:
        left = finished(room)
        assert left.is_linked
        assert [Path(path).name for path in left.left()] == ["2.qcow2", "1.qcow2"]
        (tmp_path / "1.qcow2").rename(tmp_path / "moved")
        (tmp_path / "1.qcow2").write_bytes(b"another")
        assert [Path(path).name for path in left.left()] == ["2.qcow2"]
        left.close()

    later(tmp_path, formats, content, die)
    later(tmp_path, ["qcow2"] * 4, content, look)


def test_a_commit_whose_layers_are_still_in_the_chain_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _, _ = begun(tmp_path, CHAINS["qcow2"], monkeypatch)

    async def look(room: ChainLab) -> None:
        with pytest.raises(JobError, match="it is about another chain"):
            finished(room)

    later(tmp_path, CHAINS["qcow2"], content, look)


def test_a_journal_that_cannot_be_written_ends_the_job_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError(errno.ENOSPC)

    async def scenario(room: ChainLab) -> None:
        journal = journal_for(room)
        monkeypatch.setattr("vblk.jobs.commit_journal.JournalFile.append", full)
        job = await commit(room, on_error=OnError.STOP, journal=journal)
        await job.ended()
        monkeypatch.undo()
        assert job.error is not None
        assert "No space left on device" in job.error
        assert job.status is Status.NULL

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)
