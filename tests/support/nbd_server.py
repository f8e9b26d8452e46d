"""Our own NBD server for the tests, in the test's own event loop.

Owns: a server with one export on a socket in the folder of the test, and a client
that says and sees every byte.
"""

import asyncio
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from vblk.exports.nbd import NbdExport, NbdServer
from vblk.graph.edge import READING, WRITING
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.options.address import UnixAddress

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
EXPORT_NAME, GO, STRUCTURED, SET_CONTEXTS, EXTENDED = 1, 7, 8, 10, 11


@asynccontextmanager
async def served(
    folder: Path,
    make: Callable[[Graph], Node],
    *,
    writable: bool = True,
    report: Callable[[str], None] = lambda text: None,
    max_connections: int = 100,
    handshake_limit: float = 30.0,
    graph: Graph | None = None,
    **options: Any,
) -> AsyncGenerator[tuple[NbdServer, NbdExport, Path]]:
    """Serve a node as the default export; yield the server, the export and the socket's path.

    Without a `graph` it stands in one of its own, which is closed at the end.
    """
    async with AsyncExitStack() as own:
        if graph is None:
            graph = await own.enter_async_context(Graph())
        node = make(graph)
        if node not in list(graph.nodes()):
            graph.add(node)
        handle = graph.hold(node, "the export", WRITING if writable else READING)
        server = NbdServer(
            graph, max_connections=max_connections, handshake_limit=handshake_limit, report=report
        )
        export = NbdExport("export", graph, handle, name="", writable=writable, **options)
        server.add(export)
        path = folder / "served.sock"
        await server.listen(UnixAddress(str(path)))
        try:
            yield server, export, path
        finally:
            await server.close()


class RawClient:
    """A client that is made of its bytes: simple replies unless `structured` was called."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: Path) -> "RawClient":
        """Connect and go through the greeting."""
        client = cls(*await asyncio.open_unix_connection(str(path)))
        assert await client.reader.readexactly(18) == b"NBDMAGICIHAVEOPT\0\x03"
        client.writer.write(struct.pack(">I", 3))
        return client

    @classmethod
    async def choose(cls, path: Path) -> tuple["RawClient", int]:
        """Connect and choose the default export in the oldest way; return its size too."""
        client = await cls.connect(path)
        client.option(EXPORT_NAME)
        size, _ = struct.unpack(">QH", await client.reader.readexactly(10))
        return client, size

    def option(self, number: int, data: bytes = b"") -> None:
        self.writer.write(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

    def request(
        self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"", *, cookie: int = 1
    ) -> None:
        self.writer.write(struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length) + payload)

    async def reply(self, length: int = 0) -> tuple[int, int, bytes]:
        """Return the error and the cookie of a simple reply, and the payload if all went well."""
        magic, error, cookie = struct.unpack(">IIQ", await self.reader.readexactly(16))
        assert magic == 0x67446698
        return error, cookie, b"" if error else await self.reader.readexactly(length)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()
