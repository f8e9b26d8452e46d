"""A way between a client and a server on which everything takes its time.

Owns: the listening socket, the delay of each direction, and the count of what passed.
"""

import asyncio
import threading
from types import TracebackType


class DelayingProxy:
    """Passes connections on to a local port, each piece `delay` seconds late, in its own thread."""

    def __init__(self, port: int, delay: float = 0) -> None:
        self._target = port
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0
        self.passed = 0
        """Bytes from the server to the client."""

    def __enter__(self) -> "DelayingProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(
            self._pass(reader, there_writer, count=False), self._pass(there_reader, writer, count=True)
        )

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        while data := await reader.read(1 << 20):
            if count:
                self.passed += len(data)
            self._loop.call_later(self._delay, writer.write, data)
        self._loop.call_later(self._delay, writer.close)
