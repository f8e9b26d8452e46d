"""A small Linux guest: Debian's kernel and busybox under QEMU's emulation, with a script to carry out.

Owns: the guest's first file system and the reading of what its script prints.
It knows no disk image: a test says which drives the guest has, in QEMU's words.

Ordering rule: whatever a test does, the guest is gone when its block is left.
"""

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / "build" / "guest"
MODULES = (
    "virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk "
    "failover net_failover virtio_net nbd"
).split()
PROGRAMS = ("mke2fs", "e2fsck", "nbd-client")
DONE = "guest: done"
PATIENCE = 240
"""After so many seconds a guest that says nothing is given up."""

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for name in {modules}; do insmod /modules/$name.ko || echo "guest: no module $name"; done
mkdir -p /mnt
sh /script
echo "{done} $?"
poweroff -f
"""


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """Return one file of an archive that the kernel unpacks: its "newc" form."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _libraries(program: str) -> Iterable[str]:
    """Yield the libraries that a program loads."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+) \(0x", listed)


def _first_file_system(script: str) -> bytes:
    """Return what the guest's kernel starts from: busybox, e2fsprogs, modules, and the script."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    busybox = shutil.which("busybox", path=path)
    assert busybox is not None, "busybox-static is missing"
    files = {"bin/busybox": busybox}
    for program in PROGRAMS:
        found = shutil.which(program, path=path)
        if found is not None:
            files[f"sbin/{program}"] = found
            files.update((library.lstrip("/"), library) for library in _libraries(found))
    folders = {"dev", "proc", "sys", "etc", "modules", "bin"}
    for name in files:
        folders.update(str(parent) for parent in Path(name).parents if str(parent) != ".")
    parts = [_entry(folder, 0o040755) for folder in sorted(folders)]
    parts += [_entry(name, 0o100755, Path(source).read_bytes()) for name, source in files.items()]
    parts += [
        _entry(f"modules/{name}.ko", 0o100644, (KERNEL / f"{name}.ko").read_bytes()) for name in MODULES
    ]
    parts.append(_entry("etc/mtab", 0o120777, b"/proc/mounts"))
    parts.append(_entry("init", 0o100755, INIT.format(modules=" ".join(MODULES), done=DONE).encode()))
    parts.append(_entry("script", 0o100644, script.encode()))
    return b"".join(parts) + _entry("TRAILER!!!", 0)


class Guest:
    """A guest that runs. `lines` are what its console has shown so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def wait_for(self, text: str) -> str:
        """Return the first line from now on that contains `text`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while True:
                raw = await self._process.stdout.readline()
                assert raw, "the guest ended:\n" + "\n".join(self.lines[-40:])
                line = raw.decode(errors="replace").rstrip()
                self.lines.append(line)
                if text in line:
                    return line

    async def end(self) -> None:
        """Wait until the script has ended well and the guest is switched off."""
        said = await self.wait_for(DONE)
        assert said.endswith(f"{DONE} 0"), "\n".join(self.lines[-40:])
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()

    def said(self, label: str) -> list[str]:
        """Return what stands behind `label` in the lines that begin with it."""
        return [line.removeprefix(label).strip() for line in self.lines if line.startswith(label)]


@asynccontextmanager
async def guest(folder: Path, script: str, drives: Sequence[str], *more: str) -> AsyncGenerator[Guest, None]:
    """Start a guest that runs `script`; `drives` are QEMU's --blockdev texts with node names d0, d1 ..."""
    start = folder / "guest.cpio"
    start.write_bytes(_first_file_system(script))
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-m", "256", "-serial", "stdio", "-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(start)]
    command += ["-append", "console=ttyS0 quiet panic=-1"]
    for number, drive in enumerate(drives):
        command += ["-blockdev", f"{drive},node-name=d{number}", "-device", f"virtio-blk-pci,drive=d{number}"]
    process = await asyncio.create_subprocess_exec(
        *command, *more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield Guest(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _content(image: Path, name: str) -> bytes:
    """Return a file of the ext4 file system that fills a raw image."""
    shown = subprocess.run(["debugfs", "-R", f"cat {name}", str(image)], capture_output=True, check=True)
    return shown.stdout


def assert_the_files_are_as_the_guest_said(raw: Path, sums: dict[str, str]) -> None:
    """Look at files of a raw image, whose digests the guest printed by their names."""
    assert sums
    for name, digest in sums.items():
        assert hashlib.md5(_content(raw, name.removeprefix("/mnt"))).hexdigest() == digest, name


def sums_of(lines: list[str]) -> dict[str, str]:
    """Return digests by the names of files, as the guest printed them."""
    sums: dict[str, str] = {}
    for line in lines:
        name, digest = line.split()
        sums[name] = digest
    return sums
