"""A session of QEMU's own QMP client, and the events that it saw.

Owns: the waiting for events.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

from qemu.qmp import QMPClient


class QmpSession:
    """A client of one daemon, and the events that it saw."""

    def __init__(self, client: QMPClient) -> None:
        self.client = client
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Condition()

    @staticmethod
    @asynccontextmanager
    async def connected(monitor: Path) -> "AsyncGenerator[QmpSession]":
        """Connect to a monitor's socket, and take note of its events."""
        client = QMPClient("test")
        await client.connect(str(monitor))
        session = QmpSession(client)
        listening = asyncio.ensure_future(session.listen())
        try:
            yield session
        finally:
            listening.cancel()
            with suppress(EOFError):  # the daemon may hang up first
                await client.disconnect()

    async def listen(self) -> None:
        """Take note of events, for ever."""
        async for event in self.client.events:
            data = cast("dict[str, Any]", event.get("data", {}))
            async with self._news:
                self.seen.append((str(event["event"]), data))
                self._news.notify_all()

    async def ask(self, command: str, **arguments: Any) -> Any:
        """Carry out a command; `_` in names of members is a dash."""
        return await self.client.execute(command, {k.replace("_", "-"): v for k, v in arguments.items()})

    async def until(self, event: str, **data: Any) -> None:
        """Wait until an event with these data was seen."""
        async with asyncio.timeout(60), self._news:
            await self._news.wait_for(
                lambda: any(name == event and data.items() <= said.items() for name, said in self.seen)
            )

    async def ended(self, job: str) -> None:
        """Wait until a job is no more, and ask that it came to its end."""
        await self.until("JOB_STATUS_CHANGE", id=job, status="null")
        (end,) = [data for name, data in self.seen if name == "BLOCK_JOB_COMPLETED" and data["device"] == job]
        assert "error" not in end, end
