"""A Linux guest writes all the while: its disk is mirrored to another file system, and a chain committed."""

import asyncio
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.command_line import good
from tests.support.guest import KERNEL, Guest, assert_the_files_are_as_the_guest_said, guest, sums_of
from tests.support.nbd import Server
from tests.support.qmp import OURS
from tests.support.qmp_session import QmpSession

SIZE = 192 << 20
SNAPSHOTS = 4
KEPT = 40
"""So many files the guest keeps; older ones it deletes."""

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        not (KERNEL / "vmlinuz").exists(), reason="no kernel: run scripts/guest-kernel build/guest"
    ),
]

WRITE_UNTIL_TOLD = """
set -e
/sbin/mke2fs -q -t ext4 -F /dev/vda
mount -t ext4 /dev/vda /mnt
n=0
while blockdev --flushbufs /dev/vdb; [ "$(head -c 4 /dev/vdb)" != stop ]; do
  n=$((n + 1))
  dd if=/dev/urandom of=/mnt/f$n bs=16k count=$((n % 17 + 1)) 2>/dev/null
  sync
  set -- $(md5sum /mnt/f$n); echo "sum: $2 $1"
  [ $n -gt {kept} ] && rm -f /mnt/f$((n - {kept}))
  [ $((n % 8)) = 0 ] && fstrim /mnt
done
umount /mnt
/sbin/e2fsck -f -n /dev/vda
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Generator[Path]:
    """Return a folder on another file system, if there is one."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def daemon(folder: Path, image: Path, monitor: Path) -> Server:
    """Return the storage daemon with a VHDX under the export without a name, and with a monitor."""
    node = f"driver=vhdx,node-name=disk,discard=unmap,file.driver=file,file.filename={image}"
    return Server(
        folder,
        *(*OURS, "--blockdev", node, "--nbd-server", "addr.type=fd,addr.str=3"),
        *("--export", "nbd,id=disk,node-name=disk,name=,writable=on"),
        *("--chardev", f"socket,id=m,path={monitor},server=on,wait=off", "--monitor", "m"),
    )


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


async def some_files(linux: Guest) -> None:
    for _ in range(4):
        await linux.wait_for("sum:")


async def scenario(folder: Path, elsewhere: Path, server: Server) -> dict[str, str]:
    """Return the checksums that the guest told of its files."""
    stop = folder / "stop"
    stop.write_bytes(bytes(1 << 20))
    drives = [
        f"driver=nbd,server.type=unix,server.path={server.path},discard=unmap",
        f"driver=file,filename={stop},read-only=on",
    ]
    script = WRITE_UNTIL_TOLD.format(kept=KEPT)
    async with guest(folder, script, drives) as linux:
        await some_files(linux)
        async with QmpSession.connected(folder / "qmp.sock") as session:
            reading = asyncio.create_task(linux.wait_for("guest: done"))
            await mirror(session, elsewhere / "disk.raw")
            for number in range(1, SNAPSHOTS + 1):
                await snapshot(session, folder, number)
                before = len(linux.said("sum:"))
                while len(linux.said("sum:")) < before + 3 and not reading.done():
                    await asyncio.wait([reading], timeout=0.2)
            await commit(session)
            for number in (SNAPSHOTS, SNAPSHOTS - 1):
                await session.ask("blockdev-del", node_name=f"over{number}")
            nodes = await session.ask("query-named-block-nodes")
            assert len(nodes) == 2, "the base, and its file"
        stop.write_bytes(b"stop" + bytes((1 << 20) - 4))
        assert (await reading).endswith("guest: done 0"), "\n".join(linux.lines[-40:])
        assert not [line for line in linux.lines if "I/O error" in line or "EXT4-fs error" in line]
        return sums_of(linux.said("sum:")[-KEPT:])


def test_a_guest_that_never_rests_is_moved_and_its_chain_committed_without_an_error(
    tmp_path: Path, elsewhere: Path
) -> None:
    image, raw = tmp_path / "disk.vhdx", elsewhere / "disk.raw"
    good("create", "-q", "-f", "vhdx", image, str(SIZE))
    good("create", "-q", "-f", "raw", raw, str(SIZE))
    for number in range(1, SNAPSHOTS + 1):
        good("create", "-q", "-f", "qcow2", tmp_path / f"{number}.qcow2", str(SIZE))
    with daemon(tmp_path, image, tmp_path / "qmp.sock") as server:
        sums = asyncio.run(scenario(tmp_path, elsewhere, server))
        assert server.end(signal.SIGTERM) in (0, 128 + signal.SIGTERM)
    subprocess.run(["e2fsck", "-f", "-n", str(raw)], check=True)
    read_by_qemu = elsewhere / "read by qemu.raw"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", raw, read_by_qemu], check=True)
    for disk in (raw, read_by_qemu):
        assert_the_files_are_as_the_guest_said(disk, sums)
