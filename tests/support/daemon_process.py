"""A `vblk daemon` in a process of its own, that is killed, quit and looked at from outside.

Owns: its start, its monitor, and what the system says of it.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, QMPClient

VBLK = (sys.executable, "-c", "from vblk.cli.main import run; run()")


class DaemonProcess:
    """A `vblk daemon` of its own process, with an NBD server and a monitor on unix sockets."""

    def __init__(self, folder: Path) -> None:
        self.nbd, self.monitor = folder / "nbd.sock", folder / "qmp.sock"
        self._pidfile, self._log = folder / "daemon.pid", folder / "daemon.log"
        self._pid = 0
        self._process: int | None = None
        """A descriptor that becomes readable when the process has ended."""
        self._qmp: QMPClient | None = None

    async def start(self) -> None:
        """Start it; it is in the background when everything is set up."""
        for path in (self.nbd, self.monitor, self._pidfile):
            path.unlink(missing_ok=True)
        starting = await asyncio.create_subprocess_exec(
            *VBLK,
            "daemon",
            *("--nbd-server", f"addr.type=unix,addr.path={self.nbd},max-connections=0"),
            *("--chardev", f"socket,id=mon,path={self.monitor},server=on,wait=off"),
            *("--monitor", "mon"),
            *("--log", str(self._log)),
            *("--pidfile", str(self._pidfile), "--daemonize"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        assert await starting.wait() == 0, "the daemon did not start"
        self._pid = int(self._pidfile.read_text())
        self._process = os.pidfd_open(self._pid)
        self._qmp = QMPClient("soak")
        await self._qmp.connect(str(self.monitor))

    async def ask(self, command: str, **arguments: Any) -> Any:
        """Carry out a command of the monitor."""
        assert self._qmp is not None
        members = {name.replace("_", "-"): each for name, each in arguments.items()}
        return await self._qmp.execute(command, members)

    @property
    def alive(self) -> bool:
        return self._process is not None

    def resident(self) -> int:
        """Return the bytes of memory that are the daemon's own."""
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no figure of memory")

    def descriptors(self) -> int:
        """Return how many files the daemon has open."""
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def kill(self) -> None:
        """Kill it with -9."""
        assert self._process is not None
        os.kill(self._pid, signal.SIGKILL)
        assert select.select([self._process], [], [], 60)[0], "the daemon outlived SIGKILL"

    async def forget(self) -> None:
        """Let go of a daemon that has ended."""
        assert self._process is not None
        os.close(self._process)
        self._process = None
        if self._qmp is not None:
            with suppress(Exception):
                await self._qmp.disconnect()
            self._qmp = None

    async def quit(self) -> None:
        """End it by its monitor."""
        process = self._process
        assert process is not None
        with suppress(ConnectError, EOFError):
            await self.ask("quit")
        ended: list[Any] = (await asyncio.to_thread(select.select, [process], [], [], 60))[0]
        assert ended, "the daemon does not end"
        await self.forget()

    def close(self) -> None:
        """Leave nothing behind."""
        if self._process is not None:
            self.kill()
            os.close(self._process)
