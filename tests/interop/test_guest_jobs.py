"""A Linux guest writes all the while: its disk is mirrored to another file system, and a chain committed."""

import asyncio
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.busy_guest import busy_guest, daemon
from tests.support.command_line import good
from tests.support.guest import KERNEL, assert_the_files_are_as_the_guest_said
from tests.support.nbd import Server
from tests.support.qmp_session import QmpSession

SIZE = 192 << 20
SNAPSHOTS = 4

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        not (KERNEL / "vmlinuz").exists(), reason="no kernel: run scripts/guest-kernel build/guest"
    ),
]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Generator[Path]:
    """Return a folder on another file system, if there is one."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


async def mirror(session: QmpSession, target: Path) -> None:
    """Move the disk to a raw image."""
    file = {"driver": "file", "filename": str(target)}
    await session.ask("blockdev-add", driver="raw", node_name="copy", discard="unmap", file=file)
    await session.ask("blockdev-mirror", job_id="mirror", device="disk", target="copy", sync="full")
    await session.until("BLOCK_JOB_READY", device="mirror")
    await session.ask("job-complete", id="mirror")
    await session.ended("mirror")
    await session.ask("blockdev-del", node_name="disk")


async def snapshot(session: QmpSession, folder: Path, number: int) -> None:
    """Put an overlay on the disk."""
    overlay = folder / f"{number}.qcow2"
    file = {"driver": "file", "filename": str(overlay)}
    name = f"over{number}"
    await session.ask(
        "blockdev-add", driver="qcow2", node_name=name, discard="unmap", file=file, backing=None
    )
    below = f"over{number - 1}" if number > 1 else "copy"
    await session.ask("blockdev-snapshot", node=below, overlay=name)


async def commit(session: QmpSession) -> None:
    """Commit two layers from the middle of the chain, and then the rest with the active one."""
    top = f"over{SNAPSHOTS}"
    await session.ask("block-commit", job_id="middle", device=top, top_node="over2", base_node="copy")
    await session.ended("middle")
    for name in ("over2", "over1"):
        await session.ask("blockdev-del", node_name=name)
    await session.ask("block-commit", job_id="active", device=top, base_node="copy")
    await session.until("BLOCK_JOB_READY", device="active")
    await session.ask("job-complete", id="active")
    await session.ended("active")


async def scenario(folder: Path, elsewhere: Path, server: Server) -> dict[str, str]:
    """Return the checksums that the guest told of its files."""
    async with busy_guest(folder, server) as linux, QmpSession.connected(folder / "qmp.sock") as session:
        await mirror(session, elsewhere / "disk.raw")
        for number in range(1, SNAPSHOTS + 1):
            await snapshot(session, folder, number)
            await linux.writes(3)
        await commit(session)
        for number in (SNAPSHOTS, SNAPSHOTS - 1):
            await session.ask("blockdev-del", node_name=f"over{number}")
        nodes = await session.ask("query-named-block-nodes")
        assert len(nodes) == 2, "the base, and its file"
        return await linux.stops()


def test_a_guest_that_never_rests_is_moved_and_its_chain_committed_without_an_error(
    tmp_path: Path, elsewhere: Path
) -> None:
    image, raw = tmp_path / "disk.vhdx", elsewhere / "disk.raw"
    good("create", "-q", "-f", "vhdx", image, str(SIZE))
    good("create", "-q", "-f", "raw", raw, str(SIZE))
    for number in range(1, SNAPSHOTS + 1):
        good("create", "-q", "-f", "qcow2", tmp_path / f"{number}.qcow2", str(SIZE))
    node = f"driver=vhdx,file.driver=file,file.filename={image}"
    with daemon(tmp_path, node, tmp_path / "qmp.sock") as server:
        sums = asyncio.run(scenario(tmp_path, elsewhere, server))
        assert server.end(signal.SIGTERM) in (0, 128 + signal.SIGTERM)
    subprocess.run(["e2fsck", "-f", "-n", str(raw)], check=True)
    read_by_qemu = elsewhere / "read by qemu.raw"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", raw, read_by_qemu], check=True)
    for disk in (raw, read_by_qemu):
        assert_the_files_are_as_the_guest_said(disk, sums)
