"""QEMU's own QMP client runs jobs on both daemons, and sees the same events from both."""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from tests.support.qmp import OURS, QEMU
from tests.support.qmp_session import QmpSession

pytestmark = pytest.mark.interop

MIB = 1 << 20
SIZE = 4 * MIB
SPEED = 64 << 10
"""Slow enough that a job is still copying when the next command comes."""


class Session(QmpSession):
    """A client that mirrors."""

    async def mirror(self, **more: Any) -> None:
        """Begin to mirror the disk."""
        await self.ask("blockdev-mirror", job_id="m", device="disk", target="target", sync="full", **more)

    async def gone(self) -> None:
        """Wait until the job is no more."""
        await self.until("JOB_STATUS_CHANGE", status="null")


async def completed(session: Session) -> None:
    """Run to the end, and pivot."""
    await session.mirror()
    await session.until("BLOCK_JOB_READY")
    await session.ask("block-job-complete", device="m")
    await session.gone()


async def cancelled_while_copying(session: Session) -> None:
    """Cancel in the first phase."""
    await session.mirror(speed=SPEED)
    await session.until("JOB_STATUS_CHANGE", status="running")
    await session.ask("block-job-cancel", device="m")
    await session.gone()


async def cancelled_when_ready(session: Session) -> None:
    """Cancel in the second phase: that is a success."""
    await session.mirror()
    await session.until("BLOCK_JOB_READY")
    await session.ask("block-job-cancel", device="m")
    await session.gone()


async def cancelled_by_force(session: Session) -> None:
    """Cancel in the second phase, and mean it."""
    await session.mirror()
    await session.until("BLOCK_JOB_READY")
    await session.ask("block-job-cancel", device="m", force=True)
    await session.gone()


async def cancelled_as_a_job(session: Session) -> None:
    """Cancel in the second phase by the newer command."""
    await session.mirror()
    await session.until("BLOCK_JOB_READY")
    await session.ask("job-cancel", id="m")
    await session.gone()


async def finalized_and_dismissed_by_hand(session: Session) -> None:
    """Take every step by a command."""
    await session.mirror(auto_finalize=False, auto_dismiss=False)
    await session.until("BLOCK_JOB_READY")
    await session.ask("job-complete", id="m")
    await session.until("BLOCK_JOB_PENDING")
    await session.ask("job-finalize", id="m")
    await session.until("JOB_STATUS_CHANGE", status="concluded")
    await session.ask("job-dismiss", id="m")
    await session.gone()


async def cancelled_while_pending(session: Session) -> None:
    """Change one's mind when all is done but the last step."""
    await session.mirror(auto_finalize=False)
    await session.until("BLOCK_JOB_READY")
    await session.ask("job-complete", id="m")
    await session.until("BLOCK_JOB_PENDING")
    await session.ask("job-cancel", id="m")
    await session.gone()


async def paused_and_resumed(session: Session) -> None:
    """Pause in both phases."""
    await session.mirror(speed=SPEED)
    await session.until("JOB_STATUS_CHANGE", status="running")
    await session.ask("block-job-pause", device="m")
    await session.until("JOB_STATUS_CHANGE", status="paused")
    await session.ask("block-job-set-speed", device="m", speed=0)
    await session.ask("block-job-resume", device="m")
    await session.until("BLOCK_JOB_READY")
    await session.ask("job-pause", id="m")
    await session.until("JOB_STATUS_CHANGE", status="standby")
    await session.ask("job-resume", id="m")
    await session.ask("block-job-complete", device="m")
    await session.gone()


async def with_users_who_are_followed(session: Session) -> None:
    """Copy in the mode that writes to both disks."""
    await session.mirror(copy_mode="write-blocking")
    await session.until("BLOCK_JOB_READY")
    await session.ask("block-job-complete", device="m")
    await session.gone()


async def onto_a_target_that_fails(session: Session) -> None:
    """Fail to write."""
    rule = {"event": "none", "iotype": "write", "errno": 5, "once": True}
    broken = {"driver": "blkdebug", "image": "target", "inject-error": [rule]}
    await session.ask("blockdev-add", node_name="broken", **broken)
    await session.ask("blockdev-mirror", job_id="m", device="disk", target="broken", sync="full")
    await session.gone()


SCRIPTS: tuple[Callable[[Session], Awaitable[None]], ...] = (
    completed,
    cancelled_while_copying,
    cancelled_when_ready,
    cancelled_by_force,
    cancelled_as_a_job,
    finalized_and_dismissed_by_hand,
    cancelled_while_pending,
    paused_and_resumed,
    with_users_who_are_followed,
    onto_a_target_that_fails,
)


def events(
    program: tuple[str, ...], folder: Path, script: Callable[[Session], Awaitable[None]]
) -> list[tuple[str, dict[str, Any]]]:
    """Let a script run on a daemon; return the events that its client saw."""
    folder.mkdir()
    (folder / "disk.raw").write_bytes(b"disk" * (SIZE // 4))
    (folder / "target.raw").write_bytes(bytes(SIZE))
    options = ("--chardev", "socket,id=m,path=qmp.sock,server=on,wait=off", "--monitor", "m")
    process = subprocess.Popen([*program, *options, "--pidfile", "pid"], cwd=folder)

    async def run() -> Session:
        client = QMPClient("test")
        await client.connect(str(folder / "qmp.sock"))
        session = Session(client)
        listening = asyncio.ensure_future(session.listen())
        for name in ("disk", "target"):
            file = {"driver": "file", "filename": str(folder / f"{name}.raw")}
            await session.ask("blockdev-add", driver="raw", node_name=name, file=file)
        await script(session)
        listening.cancel()
        await session.ask("quit")
        with suppress(EOFError):  # the daemon hangs up first
            await client.disconnect()
        return session

    try:
        while not (folder / "pid").exists():
            assert process.poll() is None
        session = asyncio.run(run())
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    return session.seen


def alike(seen: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return events as texts, without how far and how fast a job was that did not come to its end."""
    texts: list[str] = []
    for name, data in seen:
        unfinished = data.get("offset") != data.get("len") or name == "BLOCK_JOB_CANCELLED"
        kept = {k: v for k, v in data.items() if not (unfinished and k in ("offset", "len", "speed"))}
        texts.append(f"{name} {json.dumps(kept, sort_keys=True)}")
    return texts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_both_daemons_send_the_same_events(
    tmp_path: Path, script: Callable[[Session], Awaitable[None]]
) -> None:
    ours = alike(events(OURS, tmp_path / "ours", script))
    theirs = alike(events(QEMU, tmp_path / "qemu", script))
    assert ours == theirs
    assert ours[-1].startswith("JOB_STATUS_CHANGE"), "the job is gone"
