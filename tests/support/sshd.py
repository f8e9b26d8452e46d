"""Debian's sshd for the tests, on a port that the test owns.

Owns: a folder with everything that a server and its client know of each other:
keys, `authorized_keys`, `known_hosts`, a home with `.ssh/config`. The test listens
itself and gives each connection to an sshd of its own (`-i`), so that no port is
guessed and what is killed is known.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType

_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "/usr/sbin/sshd"
_SEPARATION = Path("/run/sshd")


def _key(path: Path) -> str:
    """Make a key, and return its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


class Sshd:
    """A server for whoever has the key `user` in its folder."""

    def __init__(self, folder: Path, *, sftp: str = "internal-sftp", more: str = "") -> None:
        self.folder = folder
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True)
        if os.geteuid() == 0:
            _SEPARATION.mkdir(mode=0o755, exist_ok=True)
        self.host_key = _key(folder / "host")
        (folder / "authorized_keys").write_text(_key(folder / "user"))
        self._configuration = folder / "sshd_config"
        self._configuration.write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nSubsystem sftp {sftp}\n{more}"
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.known_hosts = self.home / ".ssh" / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")
        (self.home / ".ssh" / "config").write_text(
            f"Host images\n  Hostname 127.0.0.1\n  Port {self.port}\nHost *\n  IdentityFile {folder}/user\n"
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def name(self, path: Path, parameters: str = "") -> str:
        return f"ssh://127.0.0.1:{self.port}{path}{parameters}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._processes.append(
                    subprocess.Popen(
                        [_SSHD, "-i", "-f", str(self._configuration), "-E", str(self.folder / "log")],
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )

    def kill(self) -> None:
        """Kill what serves the connections that there are."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> "Sshd":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.kill()
