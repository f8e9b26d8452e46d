"""Where a file on an SSH server has holes, which SFTP has no word for.

Owns: a program of a few lines that the server's Python carries out, and the talk with
it. A server that gives no shell, or has no Python, is not asked a second time, and all
of its files are data.

Ordering rule: it answers what is there when it is asked, so a request that had returned
by then is in its answer.
"""

import asyncio
import re
import shlex
from contextlib import suppress
from typing import Final

import asyncssh

from vblk.protocols.data_runs import Runs
from vblk.protocols.ssh_connection import Session

_GREETING: Final = re.compile(rb"vblk: holes of (\d{1,19}) (\d{1,19})\n")
"""The file's length, and when it was last written, in seconds."""
_PROGRAM: Final = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
def seek(at, whence, end):
    try:
        return min(end, os.lseek(fd, at, whence))
    except OSError as error:
        if error.errno != 6:
            raise
        return end
status = os.fstat(fd)
print("vblk: holes of", status.st_size, int(status.st_mtime), flush=True)
for line in sys.stdin:
    at, end = map(int, line.split())
    found = []
    while at < end and len(found) < 1000:
        data = seek(at, os.SEEK_DATA, end)
        if data > at:
            found.append("0:%d" % data)
        if data < end:
            found.append("1:%d" % max(data + 1, seek(data, os.SEEK_HOLE, end)))
        at = int(found[-1][2:])
    print(*found, flush=True)
"""
_RUN: Final = re.compile(rb"([01]):(\d{1,19})")
_RUNS_MAX: Final = 1001
LIMIT: Final = 10.0
"""Seconds until the program has to answer."""


class RemoteHoles:
    """The program, for one file.

    Concurrency: belongs to one event loop's thread; questions are asked one after the other.
    """

    def __init__(self, session: Session, path: str) -> None:
        """Prepare to start it when it is asked for the first time."""
        self._session = session
        self._path = path
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._is_of_no_use = False
        self._lock = asyncio.Lock()

    async def runs(self, offset: int, end: int) -> Runs:
        """Return (is data, end) of runs from `offset` on, up to `end` or fewer; data if nobody knows."""
        async with self._lock:
            if not self._is_of_no_use:
                try:
                    async with asyncio.timeout(LIMIT):
                        return await self._ask(offset, end)
                except (asyncssh.Error, OSError, ValueError, TimeoutError):
                    self._is_of_no_use = True
                    self.close()
                except asyncio.CancelledError:
                    self.close()  # its answer would be taken for the next one's
                    raise
            return [(True, end)]

    async def _ask(self, offset: int, end: int) -> Runs:
        process = self._process or await self._start()
        process.stdin.write(b"%d %d\n" % (offset, end))
        return _parsed(await process.stdout.readline(), offset, end)

    async def _start(self) -> "asyncssh.SSHClientProcess[bytes]":
        """Start the program, which must have found the file that SFTP has at this path."""
        known = [await self._seen()]
        command = f"exec python3 -c {shlex.quote(_PROGRAM)} {shlex.quote(self._path)}"
        process = self._process = await self._session.connection.create_process(
            command, encoding=None, stderr=asyncssh.DEVNULL
        )
        greeting = _GREETING.fullmatch(await process.stdout.readline())
        known.append(await self._seen())
        if greeting is None or (int(greeting[1]), int(greeting[2])) not in known:
            raise ValueError("there is no Python, or it sees other files")
        return process

    async def _seen(self) -> tuple[int | None, int | None]:
        """Return a file's length and when it was last written, by SFTP."""
        status = await self._session.files.stat(self._path)
        return status.size, status.mtime

    def close(self) -> None:
        """Let the program end. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(asyncssh.Error, OSError):
                process.close()


def _parsed(line: bytes, offset: int, end: int) -> Runs:
    """Read an answer.

    Raises:
        ValueError: It is none.
    """
    words = line.split()
    if not 0 < len(words) <= _RUNS_MAX or not line.endswith(b"\n"):
        raise ValueError("no answer")
    runs: Runs = []
    for word in words:
        found = _RUN.fullmatch(word)
        reached = runs[-1][1] if runs else offset
        if found is None or not reached < int(found[2]) <= end:
            raise ValueError("a wrong answer")
        runs.append((found[1] == b"1", int(found[2])))
    return runs
