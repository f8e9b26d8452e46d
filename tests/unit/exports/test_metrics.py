"""Metrics over HTTP: the one answer, what is refused, and who gets no answer at all."""

import asyncio
import stat
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from vblk.errors import OptionError, StorageError
from vblk.exports.metrics import CONNECTIONS_MAX, REQUEST_MAX, MetricsServer
from vblk.graph.statistics import Measured, Operation, Statistics


def measured() -> list[Measured]:
    statistics = Statistics()
    statistics.account(Operation.READ, 4096, 5000)
    return [Measured("export", {"export": "e"}, statistics)]


@asynccontextmanager
async def serving(address: str) -> AsyncGenerator[MetricsServer]:
    server = MetricsServer(measured)
    await server.listen(address)
    try:
        yield server
    finally:
        await server.close()


async def asked(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


def test_a_client_is_told_over_a_loopback_port() -> None:
    async def scenario() -> None:
        async with serving("127.0.0.1:0") as server:
            url = f"http://127.0.0.1:{server.port}/metrics"
            answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=30)
            with answer:
                assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert b'vblk_export_bytes_total{export="e",operation="read"} 4096\n' in answer.read()

    asyncio.run(scenario())


def test_a_unix_socket_is_the_users_alone_replaces_a_stale_one_and_goes_with_the_server(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.sock"

    async def scenario() -> None:
        killed = MetricsServer(measured)
        await killed.listen(f"unix:{path}")
        async with serving(f"unix:{path}"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            answer = await asked(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert not path.exists()
        await killed.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"NBDMAGIC\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n" + b"x" * REQUEST_MAX * 2, b"431"),
    ],
)
def test_everything_else_is_refused(request_: bytes, status: bytes, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(f"unix:{tmp_path}/m"):
            assert (await asked(tmp_path / "m", request_)).split()[1] == status

    asyncio.run(scenario())


def test_those_who_never_ask_fill_the_places_of_others_and_are_left_at_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(f"unix:{tmp_path}/m"):
            silent = [await asyncio.open_unix_connection(f"{tmp_path}/m") for _ in range(CONNECTIONS_MAX)]
            with suppress(ConnectionError):  # or an empty answer
                assert await asked(tmp_path / "m", b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0.0.0.0:1", "loopback addresses and unix sockets alone"),
        ("example:1", "no address of a host"),
        ("127.0.0.1:x", "not the number of a port"),
        ("70000", "not the number of a port"),
        ("unix:", "needs the path"),
    ],
)
def test_an_address_that_tells_others_or_none_is_refused(address: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        asyncio.run(MetricsServer(measured).listen(address))


def test_a_path_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StorageError, match="Failed to listen on"):
        asyncio.run(MetricsServer(measured).listen(f"unix:{tmp_path}/file"))
    assert (tmp_path / "file").read_text() == "precious"
