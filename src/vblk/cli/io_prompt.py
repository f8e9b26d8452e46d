"""Commands from standard input, one a line.

Owns: the prompt and the cutting of input into lines. Background requests run on
while a line is waited for.
"""

import asyncio
import os

from vblk.cli.failure import Failure
from vblk.qemu_io.session import Session

LINE_MAX = 1 << 20
"""The longest line, in bytes."""

READ_MAX = 1 << 16


class LineReader:
    """Reads lines from a descriptor without holding up the event loop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._ended = False

    async def next_line(self) -> str | None:
        """Return the next line without its end, or None when there is none.

        Raises:
            Failure: A line is longer than `LINE_MAX`, or cannot be read.
        """
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = self._buffer[:end]
                del self._buffer[: end + 1]
                return line.decode(errors="surrogateescape")
            if self._ended:
                line, self._buffer = self._buffer, bytearray()
                return line.decode(errors="surrogateescape") if line else None
            if len(self._buffer) > LINE_MAX:
                raise Failure(f"a line of commands is longer than {LINE_MAX} bytes")
            try:
                await self._readable()
                data = os.read(self._fd, READ_MAX)
            except OSError as error:
                raise Failure(f"cannot read commands: {error.strerror}") from error
            self._buffer += data
            self._ended = not data

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        try:
            loop.add_reader(self._fd, wake)
        except PermissionError:
            return  # a regular file: it is never waited for
        try:
            await ready
        finally:
            loop.remove_reader(self._fd)


async def run_prompt(session: Session, program: str, fd: int = 0) -> None:
    """Carry out commands from a descriptor until it ends or a command says so."""
    reader = LineReader(fd)
    while not session.ended:
        session.console.out.write(f"{program}> ")
        session.console.out.flush()
        line = await reader.next_line()
        if line is None:
            break
        await session.execute(line)
        # Whatever has become ready in the background has its turn before the next prompt.
        await asyncio.sleep(0)
