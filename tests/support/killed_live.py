"""A daemon with a job that goes on by its ledger, and a guest that writes: killed with SIGKILL, and resumed.

Owns: the scenarios, what the guest wrote, and the judgement of what is left. An
instant is counted as in `tests.support.killed_call`.

Ordering rule: the daemon connects to the monitor's socket, so nobody has to look
whether it is there. A job that goes on begins before the disk is exported: what a
guest changes before that would be refused.
"""

import asyncio
import random
import shutil
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pytest
from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, ExecuteError, QMPClient, StateError

from tests.support.chain_lab import shown
from tests.support.command_line import good
from tests.support.killed_call import Killer
from vblk.disk import Disk
from vblk.disk import open as open_disk
from vblk.errors import BlockError
from vblk.jobs.ledger import Task

T = TypeVar("T")
MIB: Final = 1 << 20
PAGE: Final = 4096
SECTOR: Final = 512
SIZE: Final = 12 * MIB + SECTOR
WRITES: Final = 12
"""The writes of the guest in each part of a run."""
OFTEN: Final = {
    "vblk.jobs.mirror_ledger.PERIOD": 0.005,
    "vblk.jobs.backup_ledger.PERIOD": 0.005,
    "vblk.jobs.mirror.PIECE": MIB // 2,
}
MODULES: Final = ("vblk.cli.daemon_run", "vblk.monitor.commands")
ENDS: Final = ("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
LET_DOWN: Final = (BlockError, ConnectError, ExecInterruptedError, StateError, EOFError, OSError)


class Died(EOFError):
    """The daemon has ended."""


@dataclass(frozen=True)
class Kind:
    """A job: its command, and the formats of source and target; of a commit those of the chain's images."""

    job: str
    source: str
    target: str

    @property
    def pivots(self) -> bool:
        return self.job != "drive-backup"


@dataclass
class Account:
    """What was seen, for the closing line."""

    kills: int = 0
    went_on: int = 0
    """Resumed jobs that had something to go on from."""
    spared: int = 0
    """Bytes that these had not to copy again."""
    ended: int = 0
    """Kills that came when the job had done its work."""

    def __str__(self) -> str:
        return (
            f"{self.went_on} went on in the middle, by which {self.spared >> 20} MiB were spared; "
            f"{self.ended} had just ended, the others had not begun"
        )


class Story:
    """One disk, its guest, and a job that is killed and resumed."""

    def __init__(self, folder: Path, kind: Kind, killer: Killer, seed: int, account: Account) -> None:
        self.kind = kind
        self.account = account
        self._killer = killer
        self._lot = random.Random(seed)
        self._folder = folder
        self.source = folder / f"source.{kind.source}"
        self.target = folder / f"target.{kind.target}"
        self.journal = folder / f".{self.target.name}.vblk-journal"
        self.content = bytearray(SIZE)
        self._lives = 0
        self._coming: tuple[int, bytes] | None = None
        """The write that is under way."""
        self.old = b""
        """The disk when a backup began."""

    def make(self) -> None:
        """Make the images, with some data."""
        if self.kind.job == "block-commit":
            good("create", "-q", "-f", self.kind.target, self.target, str(SIZE))
            asyncio.run(self._fill(self.target, self.kind.target, 5))
            backing = ("-b", self.target.name, "-F", self.kind.target)
            good("create", "-q", "-f", self.kind.source, *backing, self.source)
        else:
            good("create", "-q", "-f", self.kind.source, self.source, str(SIZE))
        asyncio.run(self._fill(self.source, self.kind.source, 9))
        self.old = bytes(self.content)

    def told_anew(self, folder: Path, seed: int) -> "Story":
        """Return the same story at its beginning, in another folder."""
        shutil.copytree(self._folder, folder, ignore=shutil.ignore_patterns("*.sock"))
        story = Story(folder, self.kind, self._killer, seed, self.account)
        story.content, story.old = bytearray(self.old), self.old
        return story

    async def _fill(self, path: Path, format: str, pieces: int) -> None:
        async with open_disk(path, format=format, read_only=False) as disk:
            for _ in range(pieces):
                offset = self._lot.randrange(0, SIZE - MIB, SECTOR)
                data = self._lot.randbytes(self._lot.randrange(SECTOR, MIB, SECTOR))
                await disk.write(offset, data)
                self.content[offset : offset + len(data)] = data

    # One life of the daemon

    async def live(self, after: int = 0) -> int:
        """Let a daemon do the job to its end, or be killed after so many calls; return how many it made.

        Raises:
            LET_DOWN: It was killed.
        """
        self._lives += 1
        qmp, nbd = (self._folder / f"{name}{self._lives}.sock" for name in ("qmp", "nbd"))
        client = QMPClient("story")
        await client.start_server(str(qmp))
        words = ["daemon", "--chardev", f"socket,id=m,path={qmp}", "--monitor", "m"]
        words += ["--nbd-server", f"addr.type=unix,addr.path={nbd}"]
        self._ending = asyncio.ensure_future(asyncio.to_thread(self._killer.call, list(words), after))
        try:
            await self._unless_dead(client.accept())
            await self._work(client, f"nbd+unix:///disk?socket={nbd}")
        finally:
            with suppress(*LET_DOWN):
                await client.execute("quit")
            status, calls = await self._ending
            with suppress(Exception):
                await client.disconnect()
        if status:
            raise Died
        return calls

    async def _unless_dead(self, work: Awaitable[T]) -> T:
        """Await something that a daemon does if it lives."""
        task = asyncio.ensure_future(work)
        await asyncio.wait([task, self._ending], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            raise Died
        return await task

    async def _work(self, client: QMPClient, uri: str) -> None:
        lacking = self.lacking()
        await client.execute("blockdev-add", self._node())
        with client.listener(ENDS) as told:
            await client.execute(self.kind.job, self._job())
            node = "disk" if self.kind.pivots else "filter"
            await client.execute(
                "block-export-add",
                {"type": "nbd", "id": "e", "node-name": node, "name": "disk", "writable": True},
            )
            async with open_disk(uri, format="raw", read_only=False) as guest:
                event = await self._busy(guest, told)
                self._judge_event(event, lacking)
                if self.kind.pivots:
                    await self._write(guest)
                    await client.execute("job-complete", {"id": "j"})
                    event = await self._busy(guest, told)
                    assert event["event"] == "BLOCK_JOB_COMPLETED"
                    assert "error" not in event["data"], event
                await self._write(guest)
                await guest.flush()

    async def _busy(self, guest: Disk, told: EventListener) -> Mapping[str, Any]:
        """Let the guest write until the job tells of its next step, which is returned."""
        living = asyncio.ensure_future(self._write(guest))
        event = asyncio.ensure_future(self._unless_dead(told.get()))
        await asyncio.gather(living, event, return_exceptions=True)
        await living
        return await event

    def _judge_event(self, event: Mapping[str, Any], lacking: int | None) -> None:
        wanted = "BLOCK_JOB_READY" if self.kind.pivots else "BLOCK_JOB_COMPLETED"
        assert event["event"] == wanted, event
        assert "error" not in event["data"], event
        if lacking is not None:
            self.account.went_on += 1
            self.account.spared += SIZE - lacking
            own = 0 if self.kind.job == "drive-backup" else WRITES * 3 * 16 * PAGE
            assert event["data"]["offset"] <= lacking + own, "it went on, and did not begin anew"

    def _node(self) -> dict[str, Any]:
        node: dict[str, Any] = {
            "driver": self.kind.source,
            "node-name": "disk",
            "file": {"driver": "file", "filename": str(self.source)},
        }
        if self.kind.job == "block-commit":
            base = {"driver": "file", "filename": str(self.target)}
            node["backing"] = {"driver": self.kind.target, "node-name": "base", "file": base}
        return node

    def _job(self) -> dict[str, Any]:
        job: dict[str, Any] = {"job-id": "j", "device": "disk", "resume": True}
        if self.kind.job != "block-commit":
            job |= {"target": str(self.target), "format": self.kind.target, "sync": "full"}
        if self.kind.job == "drive-mirror" and self._lot.random() < 0.3:
            job["copy-mode"] = "write-blocking"
        if not self.kind.pivots:
            job["filter-node-name"] = "filter"
            job |= {"speed": 48 * MIB, "x-perf": {"max-chunk": MIB // 2}}
        return job

    async def _write(self, guest: Disk) -> None:
        for _ in range(WRITES):
            length = self._lot.choice((SECTOR, PAGE, 10 * PAGE))
            end = SIZE if self._lot.random() < 0.1 else SIZE // 4
            offset = self._lot.randrange(0, end - length, SECTOR)
            data = self._lot.randbytes(length)
            self._coming = offset, data
            await guest.write(
                offset, data, fua=True
            )  # what is not flushed may be lost, in formats with tables
            self.content[offset : offset + length] = data
            self._coming = None

    # What a kill left

    def lacking(self) -> int | None:
        """Return how many bytes are not done by the journal; None where there is none."""
        if not self.journal.exists() or not self.journal.stat().st_size:
            return None
        data = self.journal.read_bytes()
        task = msgspec.json.decode(data[int.from_bytes(data[16:24], "little") :], type=Task)
        regions = data[PAGE : PAGE + task.regions]
        ends = [
            min(SIZE, (number + 1) * task.region) - number * task.region for number in range(task.regions)
        ]
        return sum(length for length, done in zip(ends, regions, strict=True) if not done)

    def adopt(self, path: Path, format: str) -> None:
        """Take what an image shows for what the guest has, if it may be that."""
        found = asyncio.run(shown(path, format))[:SIZE]
        assert self.is_right(found), f"{path.name} has not what the guest wrote"
        self.content = bytearray(found)
        self._coming = None

    def is_right(self, found: bytes) -> bool:
        """Tell whether a disk is what it must be, but for a write that was under way."""
        expected = bytearray(self.content)
        if self._coming is not None:
            start, data = self._coming
            for at in range(start, start + len(data), SECTOR):
                if found[at : at + SECTOR] == data[at - start : at - start + SECTOR]:
                    expected[at : at + SECTOR] = found[at : at + SECTOR]
        return found == bytes(expected)

    def has_ended(self) -> bool:
        """Tell whether the job had done its work: by the journal, or it is gone and the target is right."""
        if self.journal.exists() and self.journal.stat().st_size:
            return self.journal.read_bytes()[512] == 1
        if not self.target.exists():
            return False
        found = asyncio.run(shown(self.target, self.kind.target))[:SIZE]
        return self.is_right(found) if self.kind.pivots else found == self.old

    def run(self, after: int) -> None:
        """Let the job be killed, resume it, and see that all is right in the end."""
        try:
            asyncio.run(self.live(after))
        except LET_DOWN:
            self.account.kills += 1
        else:
            return  # it needed fewer calls this time
        if self.has_ended():
            self.account.ended += 1
            if self.kind.pivots:
                self.adopt(self.target, self.kind.target)
            else:
                self.adopt(self.source, self.kind.source)
            if self.journal.exists() and self.journal.stat().st_size:
                with pytest.raises(
                    ExecuteError, match="go on with that"
                ):  # not anew, over what the guest has
                    asyncio.run(self.live(-1))
            return
        self.adopt(self.source, self.kind.source)
        asyncio.run(self.live(-1))
        self.judge_end()

    def judge_end(self) -> None:
        """See that a job that came to its end left all as it must be."""
        assert not self.journal.exists()
        truth, other = (self.target, self.kind.target), (self.source, self.kind.source)
        if not self.kind.pivots:
            truth, other = other, truth
            assert asyncio.run(shown(*other)) == self.old
        assert asyncio.run(shown(*truth))[:SIZE] == bytes(self.content)
        for path, format in (truth, other):
            if format == "vhdx" and (self.kind.job != "block-commit" or path == self.target):
                good("check", "-q", path)
