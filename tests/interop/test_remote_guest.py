"""A Linux guest writes while its disk moves between machines: from here to SSH, on to gluster, and back."""

import asyncio
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.busy_guest import busy_guest, daemon
from tests.support.command_line import good
from tests.support.filesystems import needs_root
from tests.support.gluster import Gluster
from tests.support.guest import KERNEL, assert_the_files_are_as_the_guest_said
from tests.support.nbd import Server
from tests.support.qmp_session import QmpSession
from tests.support.sshd import Sshd

SIZE = 192 << 20

pytestmark = [
    pytest.mark.interop,
    needs_root,
    pytest.mark.skipif(
        not (KERNEL / "vmlinuz").exists(), reason="no kernel: run scripts/guest-kernel build/guest"
    ),
]


@pytest.fixture
def gluster(tmp_path: Path) -> Generator[Gluster, None, None]:
    with Gluster(tmp_path / "gluster") as server:
        server.make_volume("twice", 3, replicated=True)
        yield server


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Sshd, None, None]:
    with Sshd(tmp_path / "ssh") as server:
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.setenv("SSH_AUTH_SOCK", "")
        yield server


async def move(session: QmpSession, number: int, file: dict[str, Any]) -> None:
    """Mirror the disk into the VHDX that is in `file`, and lead the guest there."""
    before, after = f"disk{number}" if number else "disk", f"disk{number + 1}"
    await session.ask("blockdev-add", driver="vhdx", node_name=after, discard="unmap", file=file)
    job = f"move{number}"
    await session.ask("blockdev-mirror", job_id=job, device=before, target=after, sync="full")
    await session.until("BLOCK_JOB_READY", device=job)
    await session.ask("job-complete", id=job)
    await session.ended(job)
    await session.ask("blockdev-del", node_name=before)


async def scenario(folder: Path, server: Server, places: list[dict[str, Any]]) -> dict[str, str]:
    """Return the checksums that the guest told of its files."""
    async with busy_guest(folder, server) as linux, QmpSession.connected(folder / "qmp.sock") as session:
        for number, file in enumerate(places):
            await move(session, number, file)
            await linux.writes(4)
        return await linux.stops()


def test_a_guest_goes_on_while_its_disk_moves_from_here_to_ssh_to_gluster_and_back(
    tmp_path: Path, sshd: Sshd, gluster: Gluster
) -> None:
    here, there, back = tmp_path / "disk.vhdx", tmp_path / "there.vhdx", tmp_path / "back.vhdx"
    for image in (here, sshd.name(there), gluster.name("twice", "disk.vhdx"), back):
        good("create", "-q", "-f", "vhdx", image, str(SIZE))
    places: list[dict[str, Any]] = [
        {"driver": "ssh", "server": {"host": "127.0.0.1", "port": str(sshd.port)}, "path": str(there)},
        {
            "driver": "gluster",
            "volume": "twice",
            "path": "disk.vhdx",
            "server": [{"type": "inet", "host": gluster.address, "port": "24007"}],
        },
        {"driver": "file", "filename": str(back)},
    ]
    with daemon(
        tmp_path, f"driver=vhdx,file.driver=file,file.filename={here}", tmp_path / "qmp.sock"
    ) as server:
        sums = asyncio.run(scenario(tmp_path, server, places))
        assert server.end(signal.SIGTERM) in (0, 128 + signal.SIGTERM)
    good("check", back)
    raw = tmp_path / "back.raw"
    good("convert", "-O", "raw", back, raw)
    assert_the_files_are_as_the_guest_said(raw, sums)
