"""Web servers for the tests: a real nginx, and one that answers as a test wants.

Owns: the sockets that both listen on, so that no port is guessed, and who was asked
for what.
"""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

_NGINX: Final = (
    shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "/usr/sbin/nginx"
)
_CONFIGURATION: Final = """daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
  log_format short '$request_uri $body_bytes_sent';
  access_log {folder}/requests short;
  client_body_temp_path {folder}/temporary;
  proxy_temp_path {folder}/temporary;
  fastcgi_temp_path {folder}/temporary;
  uwsgi_temp_path {folder}/temporary;
  scgi_temp_path {folder}/temporary;
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {folder}/files; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ http://127.0.0.1:{port}/$1 redirect; }}
  }}
}}
"""


class Nginx:
    """nginx, over the folder `files`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"

    def __enter__(self) -> "Nginx":
        self.files.mkdir(parents=True)
        self.folder.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
            options = self.folder / "nginx.conf"
            options.write_text(_CONFIGURATION.format(folder=self.folder, port=self.port))
            self._server = subprocess.Popen(
                [_NGINX, "-c", str(options), "-g", "user root;" if os.geteuid() == 0 else ""],
                env=os.environ | {"NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
                stderr=subprocess.DEVNULL,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.terminate()
        self._server.wait()

    def name(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def requests(self) -> list[str]:
        """Return the lines of the server's log."""
        return (self.folder / "requests").read_text().splitlines()


class Asked(NamedTuple):
    """One request: its path, and its headers by their names in lower case."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int]:
        """The first and the last byte that it asks for."""
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), int(last)


Answerer = Callable[[Asked], bytes]
"""Returns all that is sent for a request; the connection is closed behind it."""


class OddServer:
    """A server that sends whatever `answer` returns."""

    def __init__(self, answer: Answerer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "OddServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def name(self, path: str = "disk", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                first, *lines = iter(lambda: stream.readline().decode("latin-1").strip(), "")
                pairs = (line.partition(": ") for line in lines)
                asked = Asked(first.split()[1], {name.lower(): value for name, _, value in pairs})
                self.asked.append(asked)
                connection.sendall(self.answer(asked))


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an answer; `_` in a header's name stands for a dash."""
    lines = [f"HTTP/1.1 {status}"]
    given = {"Content_Length": str(len(body)), "Connection": "close", **headers}
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def part(asked: Asked, content: bytes, **headers: str) -> bytes:
    """Return the right answer to a request for a range."""
    first, last = asked.range
    last = min(last, len(content) - 1)
    return answer(
        "206 Partial Content",
        content[first : last + 1],
        Content_Range=f"bytes {first}-{last}/{len(content)}",
        **headers,
    )
