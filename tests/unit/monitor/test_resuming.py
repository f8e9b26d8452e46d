"""`resume: true` by QMP: a job that goes on, and what is refused."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.command_line import good
from tests.support.monitor import Monitor, monitor, told
from vblk.graph.edge import WRITING
from vblk.graph.handle import Handle

SIZE = 3 << 20


def in_daemon(folder: Path, scenario: Callable[[Monitor, Handle], Awaitable[None]]) -> None:
    """Run a scenario with a disk, and its user."""
    good("create", "-q", "-f", "raw", folder / "disk", str(SIZE))

    async def session() -> None:
        async with monitor() as talk:
            file = {"driver": "file", "filename": str(folder / "disk")}
            await talk.add("disk", "raw", file=file)
            guest = talk.daemon.graph.hold(talk.daemon.graph.find("disk"), "the guest", WRITING)
            await guest.write(0, b"content")
            await scenario(talk, guest)

    asyncio.run(session())


async def cancelled(talk: Monitor, id: str) -> None:
    job = talk.daemon.jobs[id]
    await talk.call("block-job-cancel", device=id, force=True)
    await job.ended()
    talk.events.clear()


@pytest.mark.parametrize("format", ["raw", "vhdx", "qcow2"])
def test_a_mirror_to_an_image_that_was_made_goes_on_with_that_image(tmp_path: Path, format: str) -> None:
    async def scenario(talk: Monitor, guest: Handle) -> None:
        target = tmp_path / "target"
        how = {"device": "disk", "target": str(target), "format": format, "sync": "full", "resume": True}
        await talk.call("drive-mirror", **how)
        await told(talk, "BLOCK_JOB_READY", device="disk")
        await cancelled(talk, "disk")
        inode = target.stat().st_ino
        await talk.call("drive-mirror", **how)
        await told(talk, "BLOCK_JOB_READY", device="disk", len=0)
        await guest.write(1 << 20, b"more")
        job = talk.daemon.jobs["disk"]
        await talk.call("block-job-complete", device="disk")
        await job.ended()
        assert job.error is None
        assert target.stat().st_ino == inode
        assert guest.node.driver == format
        assert (await guest.read(0, 7), await guest.read(1 << 20, 4)) == (b"content", b"more")
        assert sorted(os.listdir(tmp_path)) == ["disk", "target"]

    in_daemon(tmp_path, scenario)


@pytest.mark.parametrize("format", ["raw", "vhdx", "qcow2"])
def test_a_backup_to_an_image_that_was_made_goes_on_with_that_image(tmp_path: Path, format: str) -> None:
    async def scenario(talk: Monitor, guest: Handle) -> None:
        target = tmp_path / "target"
        how = {"device": "disk", "target": str(target), "format": format, "sync": "full", "resume": True}
        await talk.call("drive-backup", **how, speed=1)
        await guest.write(0, b"changed")
        await cancelled(talk, "disk")
        inode = target.stat().st_ino
        await talk.call("drive-backup", **how)
        await told(talk, "BLOCK_JOB_COMPLETED", device="disk")
        assert target.stat().st_ino == inode
        assert sorted(os.listdir(tmp_path)) == ["disk", "target"]

    in_daemon(tmp_path, scenario)
    good("convert", "-f", format, "-O", "raw", tmp_path / "target", tmp_path / "shown")
    assert (tmp_path / "shown").read_bytes() == b"content".ljust(SIZE, b"\0")


def test_what_cannot_be_resumed_is_refused_and_nothing_begins(tmp_path: Path) -> None:
    async def scenario(talk: Monitor, guest: Handle) -> None:
        await talk.add("memory", "memory", size=SIZE)
        await talk.call("block-dirty-bitmap-add", node="disk", name="b")
        image = str(tmp_path / "target")
        mirror = {"job_id": "j", "device": "disk", "sync": "full", "resume": True}
        for command, arguments, why in (
            ("blockdev-mirror", {**mirror, "target": "memory"}, "a job with a journal wants local files"),
            ("drive-mirror", {**mirror, "target": "nbd://localhost/x"}, "the target is none"),
            ("drive-mirror", {**mirror, "target": image, "sync": "none"}, "sync=none cannot be resumed"),
            ("drive-backup", {**mirror, "target": image, "sync": "none"}, "only a backup with sync=full or"),
            (
                "drive-backup",
                {**mirror, "target": image, "sync": "bitmap", "bitmap": "b", "bitmap_mode": "never"},
                "only a backup with sync=full or sync=top, and without a bitmap, can be resumed",
            ),
            ("blockdev-backup", {**mirror, "target": "memory"}, "a job with a journal wants local files"),
        ):
            assert why in await talk.refused(command, **arguments)
            assert talk.daemon.jobs == {}
            talk.daemon.graph.require_unpinned(guest.node)
        assert sorted(set(os.listdir(tmp_path)) - {"target"}) == ["disk"]

    in_daemon(tmp_path, scenario)


def test_a_journal_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    async def scenario(talk: Monitor, _: Handle) -> None:
        journal = tmp_path / ".target.vblk-journal"
        how = {"device": "disk", "target": str(tmp_path / "target"), "format": "raw", "resume": True}
        await talk.call("drive-mirror", **how, sync="full")
        await told(talk, "BLOCK_JOB_READY", device="disk")
        assert "somebody copies to this target now" in await talk.refused(
            "drive-mirror", **how, sync="full", job_id="second"
        )
        await cancelled(talk, "disk")
        kept = journal.read_bytes()
        for command, sync in (("drive-backup", "full"), ("drive-mirror", "top")):
            refusal = await talk.refused(command, **how, sync=sync)
            assert "it is about another job: a mirror with sync=full of 3145728 bytes" in refusal
            assert journal.read_bytes() == kept
        journal.write_bytes(b'{"version":1,"task":{},"part":7}\n')
        refusal = await talk.refused("drive-mirror", **how, sync="full")
        assert "it is not the journal of a job that goes on while a disk is in use" in refusal

    in_daemon(tmp_path, scenario)
