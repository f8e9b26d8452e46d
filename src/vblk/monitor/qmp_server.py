"""One QMP client, served: requests in, replies and events out.

Owns: the order of requests. Those in band are carried out one after the other,
those out of band at once; nobody's requests wait for another client's. How many
clients there are is no concern of it.

Ordering rule: a reply leaves after the events that the command caused. Reading goes
on only when the client has taken the replies so far: a client that does not read
is not read from.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from vblk.errors import BlockError
from vblk.monitor.channel import Channel
from vblk.monitor.client import Client
from vblk.monitor.daemon import Daemon
from vblk.monitor.failures import qmp_error
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import QmpError, QmpSession, Request

QUEUE_MAX: Final = 8
"""The most requests in band that wait while one is carried out."""


class QmpServer:
    """Serves one connection until it ends.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(
        self, daemon: Daemon, commands: CommandTable, channel: Channel, *, pretty: bool = False
    ) -> None:
        """Serve the client behind `channel`, which is closed in the end."""
        self._daemon = daemon
        self._commands = commands
        self._channel = channel
        self._session = QmpSession(daemon.version, pretty=pretty)
        self._client = Client(self._session, channel, commands)
        self._queue: asyncio.Queue[Request] = asyncio.Queue(QUEUE_MAX)

    async def run(self) -> None:
        """Greet, and serve until the client goes or is given up.

        Cancellation: a command that is carried out is cancelled.
        """
        self._channel.send(self._session.greeting())
        self._daemon.listeners.append(self._tell)
        worker = asyncio.create_task(self._work())
        try:
            await self._read()
            await self._queue.join()
        finally:
            self._daemon.listeners.remove(self._tell)
            worker.cancel()
            self._client.close()
            if self._channel.given_up:
                self._daemon.log.note(
                    "monitor-client-given-up", "a QMP client took no events; it was cut off"
                )
            await asyncio.gather(worker, return_exceptions=True)

    def _tell(self, event: str, data: Mapping[str, Any], nanoseconds: int) -> None:
        if self._session.negotiated:
            self._channel.send(self._session.event(event, data, nanoseconds))

    async def _read(self) -> None:
        while data := await self._channel.receive():
            for request in self._session.receive(data):
                if request.out_of_band:
                    await self._serve(request)
                else:
                    await self._queue.put(request)
            if not self._session.out_of_band:
                await self._queue.join()  # what follows may be read in another way after it
            await self._channel.sent()

    async def _work(self) -> None:
        while True:
            request = await self._queue.get()
            try:
                await self._serve(request)
                await self._channel.sent()
            finally:
                self._queue.task_done()

    async def _serve(self, request: Request) -> None:
        try:
            reply = self._session.result(request, await self._execute(request))
        except QmpError as error:
            reply = self._session.failure(request, error)
        except BlockError as error:
            reply = self._session.failure(request, qmp_error(error))
        except Exception as error:
            self._daemon.log.defect(f"QMP command {request.command}", error)
            reply = self._session.failure(request, QmpError(f"internal error: {type(error).__name__}"))
        self._channel.send(reply)

    async def _execute(self, request: Request) -> Any:
        self._session.admit(request)
        command = self._commands.find(request.command)
        if request.out_of_band and not command.out_of_band:
            raise QmpError(f"The command {request.command} does not support OOB")
        self._daemon.log.say("qmp-command", name=request.command)
        return await command.execute(self._daemon, request.arguments, self._client)
