"""A real glusterd for the tests, with volumes on bricks in a folder.

Owns: the address it listens on, one of the loopback network's that no other process
of tests takes, for clients find volumes on port 24007 only; the namespace of processes
that it and its bricks live in, which ends as a whole; and the folder with all of it.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_MANAGEMENT: Final = """volume management
    type mgmt/glusterd
    option working-directory {folder}/work
    option run-directory {folder}/run
    option glusterd-sockfile {folder}/management
    option transport-type socket
    option transport.address-family inet
    option transport.socket.listen-port 24007
    option transport.socket.bind-address {address}
    option base-port 49152
    option ping-timeout 0
    option event-threads 1
end-volume
"""
_PLACES: Final = ("/run/gluster", "/var/log/glusterfs")
"""Where bricks leave sockets and logs, whatever they are told."""
_START: Final = f"""mount --bind "$1/run" {_PLACES[0]}
mount --bind "$1/logs" {_PLACES[1]}
exec glusterd --no-daemon -f "$2" -l "$3" -p "$1/pid" -L WARNING
"""
START_MAX: Final = 60.0
"""Seconds."""


class Gluster:
    """A server, started by `with`."""

    def __init__(self, folder: Path) -> None:
        number = os.getpid()
        self.folder = folder
        self.address = f"127.{100 + (number >> 16) % 100}.{number >> 8 & 255}.{number % 250 + 2}"
        self.socket = folder / "management"
        self._log = folder / "log"

    def __enter__(self) -> "Gluster":
        for name in ("work", "run", "bricks", "logs"):
            (self.folder / name).mkdir(parents=True)
        for place in _PLACES:
            Path(place).mkdir(parents=True, exist_ok=True)
        options = self.folder / "glusterd.vol"
        options.write_text(_MANAGEMENT.format(folder=self.folder, address=self.address))
        self._server = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc",
             "sh", "-ec", _START, "glusterd", str(self.folder), str(options), str(self._log)],
            env=os.environ | {"PATH": _PATH},
        )  # fmt: skip
        limit = time.monotonic() + START_MAX
        while not self._answers():
            assert time.monotonic() < limit, self._log.read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()
        self._server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._server.poll() is None, self._log.read_text()
        return self._tell("pool", "list").returncode == 0

    def _tell(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["gluster", "--mode=script", f"--glusterd-sock={self.socket}",
             f"--log-file={self.folder}/client-log", *words],
            env=os.environ | {"PATH": _PATH}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def tell(self, *words: str) -> None:
        """Give a command to the server's own tool, which must like it."""
        done = self._tell(*words)
        assert done.returncode == 0, done.stdout + done.stderr

    def make_volume(self, name: str, bricks: int, *, replicated: bool = False) -> None:
        """Make a volume whose files are spread over its bricks, or are on each of them."""
        places = [f"{self.address}:{self.brick(name, number)}" for number in range(bricks)]
        kind = ["replica", str(bricks)] if replicated else []
        self.tell("volume", "create", name, *kind, *places, "force")
        self.tell("volume", "start", name)
        limit = time.monotonic() + START_MAX
        while not self._is_served(name, bricks):
            assert time.monotonic() < limit, f"the bricks of {name} do not start"

    def _is_served(self, volume: str, bricks: int) -> bool:
        """Tell whether every brick takes connections: a client that comes earlier goes on without it."""
        shown = self._tell("volume", "status", volume, "--xml").stdout
        ports = [int(port) for port in re.findall(r"<port>(\d+)</port>", shown)]
        try:
            for port in ports[:bricks]:
                socket.create_connection((self.address, port)).close()
        except OSError:
            return False
        return len(ports) >= bricks

    def brick(self, volume: str, number: int) -> Path:
        return self.folder / "bricks" / f"{volume}-{number}"

    def name(self, volume: str, path: str) -> str:
        return f"gluster://{self.address}/{volume}/{path}"

    def files(self, volume: str, path: str) -> list[Path]:
        """Return where a file of a volume is, on its bricks."""
        return sorted(self.folder.glob(f"bricks/{volume}-*/{path}"))

    def kill_brick(self, volume: str, number: int) -> None:
        """Let the process of a brick die at once."""
        brick = os.fsencode(self.brick(volume, number))
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"glusterfsd") and brick in words:
                os.kill(int(entry.name), signal.SIGKILL)
                return
        raise AssertionError(f"no process serves {brick!r}")
