"""The command `qemu-io` of the human monitor: one line of qemu-io's language on a node in use.

Owns: which commands of the language are for a node that others use too, and the
permissions that a line needs. The language is `vblk.qemu_io`'s.

Ordering rule: requests that a line has begun, and that are not waited for, keep their
hold on the node until they end.
"""

import asyncio
from collections.abc import Callable
from functools import cache
from io import StringIO
from typing import TextIO

from vblk.graph.edge import READING, WRITING
from vblk.graph.node import Node
from vblk.monitor.daemon import Daemon
from vblk.options import NodeOptions
from vblk.qemu_io.commands import by_name
from vblk.qemu_io.language import split_line
from vblk.qemu_io.session import Access, OpenImage, Session
from vblk.qemu_io.table import Command

_NOT_HERE = frozenset(("abort", "close", "open", "quit", "reopen", "sigraise"))
"""What ends a process, or opens and closes its image."""


class _Collector:
    """Takes what the commands print: for the answer, or for somebody else at once."""

    name = "qemu-io"

    def __init__(self, take: Callable[[str], None] | None) -> None:
        self.out: TextIO = StringIO() if take is None else _Pipe(take)
        self.err: TextIO = self.out

    def print(self, *lines: str) -> None:
        """Take lines."""
        for line in lines:
            self.out.write(line + "\n")

    def text(self) -> str:
        """Return what was printed for the answer."""
        return (
            self.out.getvalue() if isinstance(self.out, StringIO) and not isinstance(self.out, _Pipe) else ""
        )


class _Pipe(StringIO):
    """Hands on what is written."""

    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__()
        self._take = take

    def write(self, text: str, /) -> int:
        """Hand it on."""
        self._take(text)
        return len(text)


@cache
def _commands() -> dict[str, Command]:
    return {name: command for name, command in by_name().items() if command.name not in _NOT_HERE}


async def run_line(daemon: Daemon, node: Node, line: str, output: Callable[[str], None] | None = None) -> str:
    """Carry out one line on a node; return what it printed, unless `output` took it.

    Raises:
        BlockError: The node is used in a way that excludes this one.
    """
    collector = _Collector(output)
    session = Session(collector, commands=_commands())
    command = _commands().get((split_line(line) or [""])[0])
    writes = command is not None and command.writes and not node.read_only
    handle = daemon.graph.hold(node, "qemu-io", WRITING if writes else READING)
    session.adopt(
        OpenImage(daemon.graph, handle, node.options or NodeOptions(), Access(read_only=not writes))
    )

    async def let_go() -> None:
        await session.finish_requests()
        await daemon.graph.release(handle)

    try:
        await session.execute(line)
    finally:
        if session.busy:
            daemon.keep_running(asyncio.ensure_future(let_go()))
        else:
            await let_go()
    return collector.text()
