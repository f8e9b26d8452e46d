"""The NBD server: what clients get, how they are kept apart, and how everything ends."""

import asyncio
import stat
from pathlib import Path

import pytest

from tests.support.nbd_server import DISC, FLUSH, READ, TRIM, WRITE, RawClient, served
from tests.support.nodes import content_of
from vblk.errors import GraphError, OptionError, StorageError
from vblk.exports.nbd import NbdExport, NbdServer
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.options.address import FdAddress, InetAddress, UnixAddress
from vblk.protocols.memory import MemoryNode

SIZE = 256 << 10


def memory(graph: Graph) -> Node:
    return MemoryNode("disk", size=SIZE, data=content_of(SIZE))


def test_requests_are_answered_and_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        content = content_of(SIZE)
        async with served(tmp_path, memory) as (_, export, path):
            client, size = await RawClient.choose(path)
            assert size == SIZE
            assert export.users == 1
            client.request(READ, 4096, 512, cookie=1)
            client.request(WRITE, 4096, 3, b"abc", cookie=2)
            client.request(FLUSH, cookie=3)
            replies: dict[int, tuple[int, bytes]] = {}
            for _ in range(3):
                error, cookie, payload = await client.reply(512 if not replies else 0)
                replies[cookie] = (error, payload)
            assert replies == {1: (0, content[4096:4608]), 2: (0, b""), 3: (0, b"")}
            client.request(READ, 4096, 3)
            assert await client.reply(3) == (0, 1, b"abc")
            client.request(READ, SIZE, 1)
            assert (await client.reply())[0] == 22
            reads, writes, *_ = export.statistics.counters
            assert (reads.operations, reads.bytes, reads.failed) == (2, 515, 1)
            assert (writes.operations, writes.bytes) == (1, 3)
            client.request(DISC)
            assert await client.reader.read() == b""
            await client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("inline", [False, True], ids=["waiting", "inline"])
def test_a_defect_of_ours_ends_a_request_or_a_connection_and_is_said_but_nobody_waits(
    tmp_path: Path, inline: bool
) -> None:
    class Broken(MemoryNode):
        def try_read(self, offset: int, length: int) -> bytes | None:
            if inline:
                raise ZeroDivisionError("oh")
            return None

        async def read_into(self, offset: int, buffer: memoryview) -> None:
            raise ZeroDivisionError("oh")

        read = read_into  # type: ignore[assignment]

    said: list[str] = []

    async def scenario() -> None:
        async with served(tmp_path, lambda graph: Broken("disk", size=SIZE)) as (server, _, path):
            server.report = said.append
            client, _ = await RawClient.choose(path)
            client.request(READ, 0, 512, cookie=7)
            if inline:
                assert await client.reader.read() == b""
            else:
                assert (await client.reply())[:2] == (5, 7)
            await client.close()

    asyncio.run(scenario())
    assert said == ["internal error: ZeroDivisionError: oh"]


def test_a_socket_is_its_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path, memory) as (_, _, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()

    asyncio.run(scenario())


def test_a_stale_socket_is_taken_over_and_a_living_one_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path, memory) as (server, _, path):
            with pytest.raises(
                StorageError, match=f"Failed to bind socket to {path}: Address already in use"
            ):
                await NbdServer(server.graph).listen(UnixAddress(str(path)))
            (path.parent / "file").write_bytes(b"kept")
            with pytest.raises(StorageError):
                await NbdServer(server.graph).listen(UnixAddress(str(path.parent / "file")))
            assert (path.parent / "file").read_bytes() == b"kept"
            stale = tmp_path / "stale.sock"
            path.rename(stale)
            stale.rename(path)
        import socket

        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        async with served(tmp_path, memory) as (_, _, path):
            client, _ = await RawClient.choose(path)
            await client.close()

    asyncio.run(scenario())


def test_tcp_ports_and_descriptors_are_listened_on_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as given:
            async with served(tmp_path, memory) as (server, _, _):
                await server.listen(InetAddress("127.0.0.1", "0"))
                await server.listen(FdAddress(given.detach()))
                _, inet, descriptor = server.addresses
                assert isinstance(inet, InetAddress)
                assert isinstance(descriptor, FdAddress)
                reader, writer = await asyncio.open_connection("127.0.0.1", int(inet.port))
                assert await reader.readexactly(8) == b"NBDMAGIC"
                writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("address", [FdAddress(0), FdAddress(12345), UnixAddress("x" * 108)])
def test_what_can_be_no_address_is_refused(address: UnixAddress | FdAddress) -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            with pytest.raises(OptionError):
                await NbdServer(graph).listen(address)

    asyncio.run(scenario())


def test_a_numeric_host_is_not_looked_up() -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            with pytest.raises(StorageError, match="address resolution failed for localhost:0"):
                await NbdServer(graph).listen(InetAddress("localhost", "0", numeric=True))

    asyncio.run(scenario())


def test_two_exports_cannot_have_one_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path, memory, writable=False) as (server, export, _):
            handle = server.graph.hold(export.handle.node, "another export")
            with pytest.raises(GraphError, match="NBD server already has export named ''"):
                server.add(NbdExport("other", server.graph, handle, name=""))

    asyncio.run(scenario())


def test_beyond_the_limit_clients_wait_for_one_to_leave(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path, memory, max_connections=1) as (server, _, path):
            first, _ = await RawClient.choose(path)
            second = asyncio.create_task(RawClient.choose(path))
            first.request(TRIM, 0, 4096)
            assert await first.reply() == (0, 1, b"")
            assert server.clients == 1
            assert not second.done()
            await first.close()
            client, size = await second
            assert size == SIZE
            await client.close()

    asyncio.run(scenario())


def test_a_handshake_that_never_ends_is_ended_and_told_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[str] = []
        async with served(tmp_path, memory, report=told.append, handshake_limit=0.01) as (server, _, path):
            client = await RawClient.connect(path)
            assert await client.reader.read() == b""
            await client.close()
            assert told == ["a client did not finish its handshake in time"]
            assert server.clients == 0

    asyncio.run(scenario())


def test_an_export_that_stops_lets_its_clients_go_and_says_so_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        for hard in (False, True):
            async with served(tmp_path, memory) as (server, export, path):
                ended: list[str] = []
                export.on_end = lambda export, ended=ended: ended.append(export.id)
                client, _ = await RawClient.choose(path)
                await asyncio.gather(export.stop(hard=hard), export.stop())
                assert await client.reader.read() == b""
                assert ended == ["export"]
                assert export.handle.closed
                assert server.find("") is None
                assert server.clients == 0
                await client.close()

    asyncio.run(scenario())
