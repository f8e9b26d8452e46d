"""The monitor's commands on a daemon in this process, without a client.

Owns: the daemon, and the events that it told.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

from vblk.errors import BlockError
from vblk.graph.registry import Graph
from vblk.monitor.commands import daemon_commands
from vblk.monitor.daemon import Daemon
from vblk.monitor.failures import qmp_error
from vblk.monitor.log import Log
from vblk.wire.qmp import QmpError


class Monitor:
    """Carries out commands by their names."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.commands = daemon_commands()
        self.events: list[tuple[str, dict[str, Any]]] = []
        daemon.listeners.append(self._note)

    def _note(self, event: str, data: Mapping[str, Any], _: int) -> None:
        self.events.append((event, dict(data)))

    async def call(self, command: str, /, **arguments: Any) -> Any:
        """Carry out a command; `_` in names of members is a dash."""
        members = {name.replace("_", "-"): value for name, value in arguments.items()}
        return await self.commands.find(command).execute(self.daemon, members)

    async def refused(self, command: str, /, **arguments: Any) -> str:
        """Carry out a command that fails, and return why."""
        try:
            result = await self.call(command, **arguments)
        except QmpError as error:
            return str(error)
        except BlockError as error:
            return str(qmp_error(error))
        raise AssertionError(f"{command} was not refused: {result}")

    async def add(self, name: str, driver: str = "null-co", **options: Any) -> None:
        """Add a node."""
        await self.call("blockdev-add", driver=driver, node_name=name, **options)


async def told(talk: Monitor, event: str, **data: Any) -> None:
    """Wait until an event with these data was told."""

    def is_it(name: str, said: Mapping[str, Any]) -> bool:
        return name == event and data.items() <= said.items()

    news = asyncio.Event()

    def note(name: str, said: Mapping[str, Any], _: int) -> None:
        if is_it(name, said):
            news.set()

    talk.daemon.listeners.append(note)
    if not any(is_it(*each) for each in talk.events):
        await asyncio.wait_for(news.wait(), 60)
    talk.daemon.listeners.remove(note)


@asynccontextmanager
async def monitor() -> AsyncGenerator[Monitor]:
    """Yield a monitor on a daemon with an empty graph, and close that."""
    daemon = Daemon(Graph(), Log("daemon", StringIO()))
    try:
        yield Monitor(daemon)
    finally:
        await daemon.close()
