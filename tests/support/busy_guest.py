"""A Linux guest that writes files to its disk until it is told to stop.

Owns: what the guest does, and the daemon that serves its disk. Where the disk is, and
what becomes of it meanwhile, is the test's business.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.support.guest import Guest, guest, sums_of
from tests.support.nbd import Server
from tests.support.qmp import OURS

KEPT: Final = 40
"""So many files the guest keeps; older ones it deletes."""

_STOP_SIZE: Final = 1 << 20
_SCRIPT: Final = """
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


def daemon(folder: Path, node: str, monitor: Path) -> Server:
    """Return the storage daemon with a node under the export without a name, and with a monitor."""
    return Server(
        folder,
        *(*OURS, "--blockdev", f"{node},node-name=disk,discard=unmap"),
        *("--nbd-server", "addr.type=fd,addr.str=3"),
        *("--export", "nbd,id=disk,node-name=disk,name=,writable=on"),
        *("--chardev", f"socket,id=m,path={monitor},server=on,wait=off", "--monitor", "m"),
    )


class BusyGuest:
    """The guest, at work."""

    def __init__(self, linux: Guest, stop: Path) -> None:
        self._linux = linux
        self._stop = stop
        self._reading = asyncio.create_task(linux.wait_for("guest: done"))

    async def writes(self, files: int) -> None:
        """Wait until it has written so many more files, or is done."""
        before = len(self._linux.said("sum:"))
        while len(self._linux.said("sum:")) < before + files and not self._reading.done():
            await asyncio.wait([self._reading], timeout=0.2)

    async def stops(self) -> dict[str, str]:
        """Tell it to stop, and return the checksums of its files; it has seen no error."""
        self._stop.write_bytes(b"stop" + bytes(_STOP_SIZE - 4))
        lines = self._linux.lines
        assert (await self._reading).endswith("guest: done 0"), "\n".join(lines[-40:])
        assert not [line for line in lines if "I/O error" in line or "EXT4-fs error" in line]
        return sums_of(self._linux.said("sum:")[-KEPT:])


@asynccontextmanager
async def busy_guest(folder: Path, server: Server) -> AsyncGenerator[BusyGuest]:
    """Let a guest write to the disk that a server shows."""
    stop = folder / "stop"
    stop.write_bytes(bytes(_STOP_SIZE))
    drives = [
        f"driver=nbd,server.type=unix,server.path={server.path},discard=unmap",
        f"driver=file,filename={stop},read-only=on",
    ]
    async with guest(folder, _SCRIPT.format(kept=KEPT), drives) as linux:
        for _ in range(4):
            await linux.wait_for("sum:")
        yield BusyGuest(linux, stop)
