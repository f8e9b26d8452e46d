"""A real Linux guest on a VHDX that vblk serves over NBD: its file system, its crash, its own NBD client."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import good
from tests.support.guest import KERNEL, assert_the_files_are_as_the_guest_said, guest, sums_of
from tests.support.nbd import Server

VBLK = (sys.executable, "-c", "from vblk.cli.main import run; run()")
SIZE = "192M"
KILLED_AFTER = 8
"""So many files has the guest synchronised when its server is killed."""

pytestmark = pytest.mark.skipif(
    not (KERNEL / "vmlinuz").exists(), reason="no kernel: run scripts/guest-kernel build/guest"
)

FILL = """
set -e
/sbin/mke2fs -q -t ext4 -F {device}
mount -t ext4 {device} /mnt
for n in 1 2 3 4 5 6; do
  mkdir -p /mnt/$n
  dd if=/dev/urandom of=/mnt/$n/random bs=64k count=$((n * 20)) 2>/dev/null
  yes text | head -c 300000 > /mnt/$n/text
done
rm -r /mnt/2 /mnt/4
fstrim /mnt || true
dd if=/dev/urandom of=/mnt/late bs=4k count=700 2>/dev/null
sync
for name in /mnt/1/random /mnt/3/text /mnt/6/random /mnt/late; do
  set -- $(md5sum $name); echo "sum: $2 $1"
done
umount /mnt
/sbin/e2fsck -f -n {device}
"""

WRITE_FOR_EVER = """
set -e
/sbin/mke2fs -q -t ext4 -F /dev/vda
mount -t ext4 /dev/vda /mnt
n=0
while true; do
  n=$((n + 1))
  dd if=/dev/urandom of=/mnt/f$n bs=16k count=$((n % 17 + 1)) 2>/dev/null
  sync
  set -- $(md5sum /mnt/f$n); echo "sum: $2 $1"
  [ $n -gt 12 ] && rm -f /mnt/f$((n - 12))
done
"""


def vblk_nbd(folder: Path, image: Path, *, tcp: bool = False) -> Server:
    """Return vblk serving a VHDX to whoever comes, until it is killed."""
    return Server(folder, *VBLK, "nbd", "-t", "-e", "8", "-f", "vhdx", "--discard=unmap", str(image), tcp=tcp)


def vblk_daemon(folder: Path, image: Path) -> Server:
    """Return the storage daemon with the same, as the export without a name."""
    node = f"driver=vhdx,node-name=disk,discard=unmap,file.driver=file,file.filename={image}"
    export = "nbd,id=disk,node-name=disk,name=,writable=on"
    return Server(
        folder,
        *(*VBLK, "daemon", "--blockdev", node),
        *("--nbd-server", "addr.type=fd,addr.str=3", "--export", export),
    )


def drive(server: Server) -> str:
    return f"driver=nbd,server.type=unix,server.path={server.path},discard=unmap"


def assert_all_readers_agree(image: Path, raw: Path) -> None:
    """Compare what vblk made of the image with what QEMU reads there."""
    subprocess.run(["qemu-img", "compare", "-f", "vhdx", "-F", "raw", str(image), str(raw)], check=True)
    subprocess.run(["qemu-img", "check", str(image)], check=True)
    good("check", image)


def test_a_guest_makes_fills_and_checks_ext4_and_every_reader_agrees(tmp_path: Path) -> None:
    image, raw = tmp_path / "disk.vhdx", tmp_path / "disk.raw"
    good("create", "-q", "-f", "vhdx", image, SIZE)

    async def scenario(server: Server) -> dict[str, str]:
        async with guest(tmp_path, FILL.format(device="/dev/vda"), [drive(server)]) as linux:
            await linux.end()
            return sums_of(linux.said("sum:"))

    server = vblk_nbd(tmp_path, image)
    with server:
        sums = asyncio.run(scenario(server))
        assert server.end(signal.SIGTERM) in (0, 128 + signal.SIGTERM)
    good("convert", "-O", "raw", image, raw)
    assert_all_readers_agree(image, raw)
    subprocess.run(["e2fsck", "-f", "-n", str(raw)], check=True)
    assert_the_files_are_as_the_guest_said(raw, sums)


def test_a_killed_daemon_keeps_what_the_guest_had_synchronised(tmp_path: Path) -> None:
    image, raw = tmp_path / "disk.vhdx", tmp_path / "disk.raw"
    good("create", "-q", "-f", "vhdx", image, SIZE)

    async def scenario(server: Server) -> dict[str, str]:
        async with guest(tmp_path, WRITE_FOR_EVER, [drive(server)]) as linux:
            for _ in range(KILLED_AFTER):
                await linux.wait_for("sum:")
            server.kill()
            return sums_of(linux.said("sum:"))

    with vblk_daemon(tmp_path, image) as server:
        sums = asyncio.run(scenario(server))
    good("convert", "-O", "raw", image, raw)  # the log is replayed in memory
    good("io", "-f", "vhdx", "-c", "flush", image)  # opened for writing, it is replayed in place
    assert_all_readers_agree(image, raw)
    repaired = subprocess.run(
        ["e2fsck", "-f", "-p", str(raw)], check=False
    )  # ext4 replays a journal of its own
    assert repaired.returncode in (0, 1)
    subprocess.run(["e2fsck", "-f", "-n", str(raw)], check=True)
    assert_the_files_are_as_the_guest_said(raw, sums)


def test_the_kernels_own_client_works_on_an_export(tmp_path: Path) -> None:
    image, raw = tmp_path / "disk.vhdx", tmp_path / "disk.raw"
    good("create", "-q", "-f", "vhdx", image, SIZE)
    connect = """
        set -e
        ifconfig lo up; ifconfig eth0 10.0.2.15 up
        /sbin/nbd-client 10.0.2.2 {port} /dev/nbd0 -N '' -C 2 >/dev/null
    """
    leave = "\n/sbin/nbd-client -d /dev/nbd0\n"

    async def scenario(server: Server) -> dict[str, str]:
        script = connect.format(port=server.port) + FILL.format(device="/dev/nbd0") + leave
        network = ("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0")
        async with guest(tmp_path, script, [], *network) as linux:
            await linux.end()
            return sums_of(linux.said("sum:"))

    server = vblk_nbd(tmp_path, image, tcp=True)
    with server:
        sums = asyncio.run(scenario(server))
        assert server.end(signal.SIGTERM) in (0, 128 + signal.SIGTERM)
    good("convert", "-O", "raw", image, raw)
    assert_all_readers_agree(image, raw)
    assert_the_files_are_as_the_guest_said(raw, sums)
