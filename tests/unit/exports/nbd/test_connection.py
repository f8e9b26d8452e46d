"""One client at a time: cut in the middle, slow, greedy, broken; and what the graph does meanwhile."""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.nbd_server import (
    EXTENDED,
    FLUSH,
    GO,
    READ,
    SET_CONTEXTS,
    STATUS,
    STRUCTURED,
    WRITE,
    RawClient,
    served,
)
from tests.support.nodes import LOOPS, content_of, run
from tests.support.turns import until
from vblk.errors import StorageError
from vblk.exports.nbd import NamedBitmap
from vblk.exports.nbd.connection import MEMORY_MAX, WAITING_MAX, WORKERS
from vblk.graph.node import Buffer, Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.memory import MemoryNode

SIZE = 4 << 20
CONTENT = content_of(SIZE)


class Gated(MemoryNode):
    """A disk that answers nothing at once, and lets requests wait for a gate."""

    def __init__(self, name: str = "disk", *, size: int = SIZE) -> None:
        super().__init__(name, size=size, data=CONTENT[:size])
        self.gate = asyncio.Event()
        self.waiting = 0
        self.most_waiting = 0
        self.failure: StorageError | None = None

    def try_read(self, offset: int, length: int) -> bytes | None:
        return None

    def try_write(self, offset: int, data: Buffer) -> bool:
        return False

    async def _wait(self) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        if self.failure is not None:
            raise self.failure

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._wait()
        await super().read_into(offset, buffer)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._wait()
        await super().write(offset, data, fua=fua)


Scenario = Callable[[Gated, RawClient, Path], Awaitable[None]]


def gated(path: Path, scenario: Scenario, **options: Any) -> None:
    """Run a scenario with a client of a gated disk."""

    async def whole() -> None:
        node: list[Gated] = []

        def make(graph: Graph) -> Node:
            node.append(Gated())
            return node[0]

        async with served(path, make, **options) as (server, export, place):
            client, _ = await RawClient.choose(place)
            await scenario(node[0], client, place)
            await client.close()
            node[0].gate.set()
            await until(lambda: not server.clients)
            assert export.users == 0
            assert export.statistics.in_flight == 0

    run(whole())


def test_requests_that_wait_do_not_hold_up_others_and_a_fixed_number_runs(tmp_path: Path) -> None:
    async def scenario(node: Gated, client: RawClient, path: Path) -> None:
        for number in range(3 * WORKERS):
            client.request(READ, number * 512, 512, cookie=number)
        await until(lambda: node.waiting == WORKERS)
        client.request(FLUSH, cookie=99)
        node.gate.set()
        seen: dict[int, bytes] = {}
        for _ in range(3 * WORKERS + 1):
            magic, error, cookie = struct.unpack(">IIQ", await client.reader.readexactly(16))
            assert (magic, error) == (0x67446698, 0)
            seen[cookie] = await client.reader.readexactly(0 if cookie == 99 else 512)
        assert all(seen[number] == CONTENT[number * 512 :][:512] for number in range(3 * WORKERS))
        assert node.most_waiting == WORKERS

    gated(tmp_path, scenario)


def test_a_client_that_is_killed_leaves_whole_writes_done_and_cut_ones_undone(tmp_path: Path) -> None:
    async def scenario(node: Gated, client: RawClient, path: Path) -> None:
        client.request(WRITE, 0, 4, b"done")
        client.request(WRITE, 4096, 8, b"half")  # four bytes are missing
        long = b"x" * (200 << 10)
        other, _ = await RawClient.choose(path)
        other.request(WRITE, 1 << 20, len(long), long[:-1])
        await until(lambda: node.waiting == 1)
        client.writer.transport.abort()
        other.writer.transport.abort()
        node.gate.set()
        await until(lambda: node.waiting == 0)
        assert await MemoryNode.read(node, 0, 5000) == b"done" + CONTENT[4:5000]
        assert await MemoryNode.read(node, 1 << 20, len(long)) == CONTENT[1 << 20 :][: len(long)]

    gated(tmp_path, scenario)


def test_an_error_of_the_disk_is_the_clients_and_the_connection_goes_on(tmp_path: Path) -> None:
    async def scenario(node: Gated, client: RawClient, path: Path) -> None:
        node.failure = StorageError(5, "the medium is worn")
        node.gate.set()
        client.request(READ, 0, 512)
        assert await client.reply() == (5, 1, b"")
        node.failure = None
        client.request(READ, 0, 4)
        assert await client.reply(4) == (0, 1, CONTENT[:4])

    gated(tmp_path, scenario)


def test_a_defect_of_ours_is_told_and_ends_nothing(tmp_path: Path) -> None:
    told: list[str] = []

    async def scenario(node: Gated, client: RawClient, path: Path) -> None:
        node.flush = lambda: (_ for _ in ()).throw(ZeroDivisionError("oops"))  # type: ignore[method-assign]
        client.request(FLUSH)
        assert await client.reply() == (5, 1, b"")
        del node.flush
        client.request(FLUSH)
        assert await client.reply() == (0, 1, b"")
        assert told == ["internal error: ZeroDivisionError: oops"]

    gated(tmp_path, scenario, report=told.append)


def test_what_one_client_makes_the_server_remember_is_bounded(tmp_path: Path) -> None:
    async def scenario(node: Gated, client: RawClient, path: Path) -> None:
        sent = 3 * WAITING_MAX
        for number in range(sent):
            client.request(READ, 0, 1, cookie=number)
        await until(lambda: node.waiting == WORKERS)
        for _ in range(50):
            await asyncio.sleep(0)
        node.gate.set()
        cookies = {(await client.reply(1))[1] for _ in range(sent)}
        assert cookies == set(range(sent))

    gated(tmp_path, scenario)
    assert MEMORY_MAX == 64 << 20


def test_a_client_that_takes_nothing_is_not_heard_and_others_are_served(tmp_path: Path) -> None:
    async def whole() -> None:
        async with served(tmp_path, lambda graph: MemoryNode("m", size=SIZE, data=CONTENT)) as (
            server, _, path,
        ):  # fmt: skip
            with socket.socket(socket.AF_UNIX) as greedy:
                greedy.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(greedy, str(path))
                await loop.sock_sendall(greedy, struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
                request = struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, 1 << 16)
                sent = 0
                while sent < 1 << 20:  # of requests, for 2 GiB of answers
                    try:
                        sent += greedy.send(request * 100)
                    except BlockingIOError:
                        break
                    await asyncio.sleep(0)
                assert sent < 1 << 20
                (connection,) = server._connections
                assert connection._channel.pending < 8 << 20
                client, _ = await RawClient.choose(path)
                client.request(READ, 0, 4)
                assert await client.reply(4) == (0, 1, CONTENT[:4])
                await client.close()
            await until(lambda: not server.clients)

    run(whole())


def test_a_client_that_says_its_last_and_goes_without_its_answers_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vblk.exports.nbd.server.UNIX_BUFFER", 1 << 16)

    async def whole() -> None:
        async with served(tmp_path, lambda graph: MemoryNode("m", size=SIZE, data=CONTENT)) as (
            server, export, path,
        ):  # fmt: skip
            client, _ = await RawClient.choose(path)
            for number in range(20):
                client.request(READ, 0, 1 << 16, cookie=number)
            client.writer.write_eof()
            (connection,) = server._connections
            await until(lambda: connection._ending)
            assert connection._channel.pending > 0
            client.writer.transport.abort()
            await until(lambda: not server.clients)
            assert export.users == 0

    run(whole())


@pytest.mark.parametrize("sent", [b"\0" * 28, struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 1 << 31)])
def test_a_client_that_breaks_the_protocol_is_cut_off_and_told_of(sent: bytes, tmp_path: Path) -> None:
    async def whole() -> None:
        told: list[str] = []
        async with served(
            tmp_path, lambda graph: MemoryNode("m", size=SIZE, data=CONTENT), report=told.append
        ) as (server, _, path):
            client, _ = await RawClient.choose(path)
            client.writer.write(sent)
            assert await client.reader.read() == b""
            assert len(told) == 1
            assert server.clients == 0
            await client.close()

    run(whole())


@pytest.mark.parametrize("loop", LOOPS)
def test_long_reads_of_a_file_are_whole_while_the_graph_is_drained_again_and_again(
    loop: str, tmp_path: Path
) -> None:
    """Bytes go from the file to the socket, and have to be out of the way of every change of the graph."""

    async def whole() -> None:
        path = tmp_path / "disk.raw"
        with open(path, "wb") as file:  # noqa: ASYNC230
            file.write(CONTENT)
        async with Graph() as graph:
            node = await open_node(
                graph, from_mapping({"driver": "file", "filename": str(path)}), Request(read_only=True)
            )
            async with served(tmp_path, lambda _: node, writable=False, graph=graph) as (_, export, place):
                client, _ = await RawClient.choose(place)
                for number in range(16):
                    client.request(READ, 0, SIZE, cookie=number)
                await until(lambda: export.handle.traffic.in_flight > 0)

                async def drain() -> None:
                    while not done.is_set():
                        async with graph.drained(node):
                            assert export.handle.traffic.in_flight == 0
                        await asyncio.sleep(0)

                done = asyncio.Event()
                draining = asyncio.create_task(drain())
                for _ in range(16):
                    error, _, payload = await client.reply(SIZE)
                    assert error == 0
                    assert payload == CONTENT
                done.set()
                await draining
                await client.close()

    run(whole(), loop)


def test_a_drain_holds_requests_back(tmp_path: Path) -> None:
    async def whole() -> None:
        node = MemoryNode("m", size=SIZE, data=CONTENT)
        async with served(tmp_path, lambda graph: node) as (server, export, path):
            client, _ = await RawClient.choose(path)
            async with server.graph.drained(node):
                client.request(WRITE, 0, 4, b"late")
                client.request(READ, 0, 4, cookie=2)
                await until(lambda: export.statistics.in_flight == 2)
                assert await node.read(0, 4) == CONTENT[:4]
            assert {(await client.reply(0))[0] for _ in range(1)} == {0}
            await client.close()

    run(whole())


class HalfDirty:
    """A dirty bitmap whose second half is dirty."""

    def ranges(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        middle = min(max(SIZE // 2 - offset, 0), length)
        parts = [(offset, middle, False), (offset + middle, length - middle, True)]
        return [part for part in parts if part[1]]


def test_contexts_are_told_side_by_side_in_both_dialects(tmp_path: Path) -> None:
    async def whole() -> None:
        node = MemoryNode("m", size=SIZE, data=CONTENT)
        async with served(
            tmp_path, lambda graph: node, bitmaps=[NamedBitmap("b", HalfDirty())], allocation_depth=True
        ) as (_, _, path):
            for dialect in (STRUCTURED, EXTENDED):
                client = await RawClient.connect(path)
                client.option(dialect)
                await client.reader.readexactly(20)
                queries = (b"qemu:dirty-bitmap:b", b"qemu:allocation-depth")
                client.option(
                    SET_CONTEXTS,
                    bytes(4) + struct.pack(">I", 2)
                    + b"".join(struct.pack(">I", len(query)) + query for query in queries),
                )  # fmt: skip
                for query in sorted(queries):
                    answer = await client.reader.readexactly(20 + 4 + len(query))
                    assert answer.endswith(query)
                await client.reader.readexactly(20)
                client.option(GO, bytes(6))
                kind = 0
                while kind != 1:
                    kind, length = struct.unpack(">12xII", await client.reader.readexactly(20))
                    await client.reader.readexactly(length)
                extended = dialect == EXTENDED
                head, extent = (">IHHQQQ", ">QQ") if extended else (">IHHQI", ">II")
                layout = ">IHHQQQ" if extended else ">IHHQQI"
                magic = 0x21E41C71 if extended else 0x25609513
                client.writer.write(struct.pack(layout, magic, 0, STATUS, 5, 0, SIZE))
                told = {}
                while True:
                    fields = struct.unpack(head, await client.reader.readexactly(struct.calcsize(head)))
                    payload = await client.reader.readexactly(fields[-1])
                    if fields[1] & 1:
                        break
                    (context,) = struct.unpack_from(">I", payload)
                    told[context] = list(struct.iter_unpack(extent, payload[8 if extended else 4 :]))
                assert told == {1: [(SIZE, 1)], 2: [(SIZE // 2, 0), (SIZE // 2, 1)]}
                await client.close()

    run(whole())


def test_a_thousand_clients_come_and_go_and_leave_nothing_behind(tmp_path: Path) -> None:
    async def whole() -> None:
        async with served(tmp_path, lambda graph: MemoryNode("m", size=SIZE, data=CONTENT)) as (
            server, export, path,
        ):  # fmt: skip
            before, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
            for number in range(1000):
                with socket.socket(socket.AF_UNIX) as client:
                    client.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(client, str(path))
                    if number % 3 == 1:
                        client.send(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", number % 12, 0))
                    if number % 3 == 2:
                        client.send(b"GET / HTTP/1.1\r\n\r\n")
                await asyncio.sleep(0)
            await until(lambda: not server.clients)
            assert len(os.listdir("/proc/self/fd")) == before
            assert len(asyncio.all_tasks()) == tasks
            assert not export.handle.traffic.on_hold

    run(whole())
