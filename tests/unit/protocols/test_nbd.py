"""The NBD node over servers that follow a script: what it asks, and what it does when they go away."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.nbd import Request, VirtualClock, answering, oldstyle, read_request, scripted, simple
from vblk.errors import (
    BlockError,
    NodeFailed,
    NoSpace,
    OptionError,
    PeerError,
    StorageError,
    Unsupported,
)
from vblk.extent import Kind
from vblk.graph.objects import Objects
from vblk.options import bind
from vblk.protocols.nbd import CONNECTIONS, Options, ServerOptions, open_nbd
from vblk.protocols.nbd_connection import CANCELLED_WAIT
from vblk.protocols.nbd_link import HANDSHAKE_LIMIT
from vblk.protocols.nbd_node import NbdNode
from vblk.protocols.nbd_pool import BUSY

ALL = nbd.HAS_FLAGS | nbd.FLUSH | nbd.FUA | nbd.TRIM | nbd.ZEROES | nbd.FAST_ZERO
Scenario = Callable[[], Awaitable[None]]


async def opened(
    path: Path,
    *,
    delay: int = 0,
    patience: int = 0,
    clock: VirtualClock | None = None,
    read_only: bool = False,
) -> NbdNode:
    options = Options(server=ServerOptions("unix", str(path)), reconnect_delay=delay, open_timeout=patience)
    return await open_nbd(
        options, name="n", filename="nbd:", read_only=read_only, clock=clock or VirtualClock()
    )


async def settled(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something has happened."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def kinds(seen: list[Request]) -> list[int]:
    return [request.kind for request in seen]


def test_a_write_in_flight_is_sent_again_when_the_server_is_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        before: list[Request] = []
        after: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering(before, most=0), answering(after)):
            node = await opened(path, delay=5)
            await node.write(512, b"x" * 3072)
            await node.close()
            await settled(lambda: nbd.DISC in kinds(after))
        assert before[0].payload == after[0].payload == b"x" * 3072
        assert before[0].offset == after[0].offset == 512
        assert kinds(after) == [nbd.WRITE, nbd.FLUSHING, nbd.DISC]

    asyncio.run(scenario())


def test_without_a_delay_what_is_in_flight_fails_at_once_and_the_next_request_connects(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        seen: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering([], most=0), answering(seen)) as counts:
            node = await opened(path)
            with pytest.raises(StorageError, match="connection to the server was lost") as caught:
                await node.read(0, 512)
            assert (caught.value.errno, caught.value.filename) == (errno.EIO, "nbd:")
            assert counts == [1, 0]
            assert await node.read(0, 512) == bytes(512)
            await node.close()

    asyncio.run(scenario())


def test_requests_wait_as_long_as_the_delay_and_no_longer(tmp_path: Path) -> None:
    async def scenario() -> None:
        path, clock = tmp_path / "s", VirtualClock()
        async with scripted(path, answering([], most=0)):
            node = await opened(path, delay=7, clock=clock)
            path.unlink()
            start = clock.now()
            results = await asyncio.gather(*(node.read(at, 512) for at in (0, 512)), return_exceptions=True)
            for result in results:
                assert isinstance(result, StorageError)
                assert "not made again: Failed to connect to" in result.message
            assert 5 < clock.now() - start <= 7
            tried = len(clock.slept)
            with pytest.raises(StorageError, match="not made again"):  # now each request tries once
                await node.read(0, 512)
            assert [pause for pause in clock.slept[tried:] if pause in nbd.PAUSES] == [1.0]
            await node.close()

    asyncio.run(scenario())


def test_a_server_that_ends_every_connection_without_an_answer_is_not_asked_for_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        path, clock = tmp_path / "s", VirtualClock()
        async with scripted(path, answering([], most=0)) as counts:
            node = await opened(path, delay=10, clock=clock)
            with pytest.raises(StorageError, match="connection to the server was lost"):
                await node.read(0, 512)
            assert counts[0] < 30
            await node.close()

    asyncio.run(scenario())


def test_opening_waits_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    async def scenario() -> None:
        path, clock = tmp_path / "s", VirtualClock()
        opening = asyncio.create_task(opened(path, patience=1 << 30, clock=clock))
        await settled(lambda: len(clock.slept) > 2)
        async with scripted(path, answering([])):
            node = await opening
            assert node.size == 1 << 20
            await node.close()

    asyncio.run(scenario())


def test_a_server_that_never_greets_is_given_up(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario() -> None:
        path, clock = tmp_path / "s", VirtualClock()
        async with scripted(path, silent) as counts:
            opening = asyncio.create_task(opened(path, clock=clock))
            await settled(lambda: counts == [1])
            clock.advance(HANDSHAKE_LIMIT)
            with pytest.raises(StorageError, match="did not answer within 30 s") as caught:
                await opening
            assert caught.value.errno == errno.ETIMEDOUT

    asyncio.run(scenario())


def test_a_server_that_closes_during_the_handshake_is_named(tmp_path: Path) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"NBDMAGIC")

    async def scenario() -> None:
        path = tmp_path / "s"
        async with scripted(path, rude):
            with pytest.raises(StorageError, match="Failed to read server magic: Unexpected end-of-file"):
                await opened(path)

    asyncio.run(scenario())


def test_a_broken_answer_fails_what_is_in_flight_and_is_not_asked_for_again(tmp_path: Path) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(oldstyle(1 << 20))
        await read_request(reader)
        writer.write(b"what do you want from me?")
        await reader.read()

    async def scenario() -> None:
        path = tmp_path / "s"
        async with scripted(path, broken, answering([])) as counts:
            node = await opened(path, delay=60)
            results = await asyncio.gather(*(node.read(at, 512) for at in (0, 512)), return_exceptions=True)
            assert all(isinstance(result, PeerError) for result in results)
            assert counts == [1, 0]
            assert await node.read(0, 512) == bytes(512)
            await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("size", "flags", "problem"),
    [(1 << 19, 5, "524288 bytes"), (1 << 20, 7, "reading only"), (1 << 20, 1, "SEND_FLUSH")],
)
def test_a_server_that_comes_back_with_another_export_is_not_written_to(
    size: int, flags: int, problem: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        seen: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering([], most=0), answering(seen, size=size, flags=flags)):
            node = await opened(path, delay=3)
            with pytest.raises(StorageError, match=f"another export.*{problem}"):
                await node.write(0, b"x" * 512)
            assert seen == []
            with pytest.raises(NodeFailed):  # what was written cannot be made stable
                await node.close()

    asyncio.run(scenario())


def test_a_server_that_says_it_shuts_down_is_left_and_asked_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        leaving: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering(leaving, error=108), answering([])):
            node = await opened(path, delay=5)
            assert await node.read(0, 512) == bytes(512)
            await settled(lambda: kinds(leaving) == [nbd.READ, nbd.DISC])
            await node.close()

    asyncio.run(scenario())


def test_a_cancelled_request_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(oldstyle(1 << 20))
            request = await read_request(reader)
            asked.set()
            await may_answer.wait()
            writer.write(simple(request.cookie, 0, bytes(512)))
            await reader.read()

        path = tmp_path / "s"
        async with scripted(path, slow):
            node = await opened(path)
            read = asyncio.create_task(node.read(0, 512))
            await asked.wait()
            read.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not read.done()
            may_answer.set()
            await asyncio.wait([read])
            assert read.cancelled()
            await node.close()

    asyncio.run(scenario())


def test_a_cancelled_request_that_nobody_answers_costs_its_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[Request] = []
        path, clock = tmp_path / "s", VirtualClock()
        async with scripted(path, answering(seen, most=0), answering([])):
            node = await opened(path, delay=5, clock=clock)
            read = asyncio.create_task(node.read(0, 512))
            await settled(lambda: bool(seen))
            read.cancel()
            await settled(lambda: CANCELLED_WAIT in clock.slept or read.done())
            clock.advance(CANCELLED_WAIT)
            await asyncio.wait([read])
            assert read.cancelled()
            assert await node.read(512, 512) == bytes(512)
            await node.close()

    asyncio.run(scenario())


def test_a_failed_flush_poisons_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s"
        async with scripted(path, answering([], error=5)):
            node = await opened(path)
            with pytest.raises(NodeFailed, match="flush failed"):
                await node.flush()
            for request in (node.read(0, 1), node.write(0, b"x" * 512), node.allocation(0, 1)):
                with pytest.raises(NodeFailed):
                    await request
            await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [
        (28, NoSpace, errno.ENOSPC),
        (95, Unsupported, errno.ENOTSUP),
        (1, StorageError, errno.EPERM),
        (4242, StorageError, errno.EINVAL),
    ],
)
def test_errors_of_the_server_arrive_as_what_they_are(
    code: int, kind: type[BlockError], number: int, tmp_path: Path
) -> None:
    async def scenario() -> None:
        path = tmp_path / "s"
        async with scripted(path, answering([], error=code)):
            node = await opened(path, read_only=True)
            with pytest.raises(kind) as caught:
                await node.read(1024, 512)
            assert (caught.value.errno, caught.value.offset, caught.value.length) == (number, 1024, 512)
            await node.close()

    asyncio.run(scenario())


def test_a_server_without_flush_is_not_asked_for_one_and_that_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering(seen, flags=nbd.HAS_FLAGS)):
            node = await opened(path)
            assert "no flush" in node.warnings[0]
            await node.write(0, b"x" * 512, fua=True)
            await node.flush()
            await node.close()
            await settled(lambda: nbd.DISC in kinds(seen))
        assert kinds(seen) == [nbd.WRITE, nbd.DISC]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("flags", "sent"), [(ALL, [(nbd.WRITE, 1)]), (5, [(nbd.WRITE, 0), (nbd.FLUSHING, 0)])]
)
def test_a_stable_write_is_asked_for_in_the_servers_way(
    flags: int, sent: list[tuple[int, int]], tmp_path: Path
) -> None:
    async def scenario() -> None:
        seen: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering(seen, size=(1 << 20) + 1, flags=flags)):
            node = await opened(path)
            await node.write(3, b"x", fua=True)
            assert [(request.kind, request.flags) for request in seen] == sent
            await node.close()

    asyncio.run(scenario())


def test_zeroing_and_trimming_carry_what_was_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering(seen, size=3 << 30, flags=ALL)):
            node = await opened(path)
            await node.write_zeroes(0, 4096)
            await node.write_zeroes(0, 4096, unmap=True)
            await node.write_zeroes(0, 4096, no_fallback=True)
            await node.discard(100, 4096)
            seen_so_far = [(each.kind, each.flags, each.offset, each.length) for each in seen]
            no_hole, fast = 2, 16
            assert seen_so_far == [
                (nbd.ZEROING, no_hole, 0, 4096),
                (nbd.ZEROING, 0, 0, 4096),
                (nbd.ZEROING, no_hole | fast, 0, 4096),
                (nbd.TRIMMING, 0, 512, 3584),
            ]
            await node.write_zeroes(0, 3 << 30)
            assert sum(each.length for each in seen[4:]) == 3 << 30
            await node.close()

    asyncio.run(scenario())


def test_zeros_are_written_out_where_the_server_cannot_make_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[Request] = []
        path = tmp_path / "s"
        async with scripted(path, answering(seen, size=4 << 20)):
            node = await opened(path)
            with pytest.raises(Unsupported, match="fast"):
                await node.write_zeroes(0, 512, no_fallback=True)
            await node.write_zeroes(0, 3 << 20)
            await node.discard(0, 4096)
            assert kinds(seen) == [nbd.WRITE] * 3
            assert all(not any(each.payload) for each in seen)
            assert [span.kind for span in await node.allocation(0, 4 << 20)] == [Kind.DATA]
            await node.close()

    asyncio.run(scenario())


def test_an_export_for_reading_only_is_not_opened_for_writing(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s"
        async with scripted(path, answering([], flags=nbd.HAS_FLAGS | nbd.READ_ONLY)):
            with pytest.raises(StorageError, match="for reading only") as caught:
                await opened(path)
            assert caught.value.errno == errno.EACCES
            node = await opened(path, read_only=True)
            with pytest.raises(StorageError, match="for reading only"):
                await node.reopen(read_only=False)
            await node.close()

    asyncio.run(scenario())


def test_an_export_has_no_other_size(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s"
        async with scripted(path, answering([])):
            node = await opened(path)
            await node.resize(1 << 20)
            await node.resize(4096, exact=False)
            with pytest.raises(Unsupported, match="Cannot resize NBD nodes"):
                await node.resize(4096)
            with pytest.raises(Unsupported, match="Cannot grow NBD nodes"):
                await node.resize(2 << 20, exact=False)
            await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({}, "NBD server address missing"),
        ({"server.type": "unix"}, "Parameter 'path' is missing"),
        ({"server.type": "inet", "server.host": "h"}, "Parameter 'port' is missing"),
        ({"server.type": "unix", "server.path": "p", "server.port": "1"}, "'server.port' is unexpected"),
        ({"server.type": "unix", "server.path": "p", "reconnect-delay": "-1"}, "'reconnect-delay'"),
    ],
)
def test_an_address_that_says_too_little_or_too_much_is_refused(own: dict[str, str], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        bind(own, Options, "nbd").address()


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({"tls-hostname": "h"}, "tls-hostname may not be used without TLS"),
        ({"tls-psk-file": "f"}, "tls-psk-file may not be used without TLS"),
        ({"tls-creds": "t", "tls-certificates": "d"}, "tls-certificates may not be used beside tls-creds"),
        ({"tls": "on", "tls-certificates": "d", "tls-psk-file": "f"}, "at the same time"),
        ({"tls-creds": "t"}, "No TLS credentials with id 't'"),
        ({"tls": "on", "tls-certificates": "/nowhere"}, "Unable to access credentials /nowhere/ca-cert.pem"),
    ],
)
def test_tls_that_is_asked_for_in_a_way_that_cannot_be_right_is_refused(
    own: dict[str, str], text: str
) -> None:
    options = bind({"server.type": "unix", "server.path": "p", **own}, Options, "nbd")
    with pytest.raises(OptionError, match=text):
        options.begin(Objects(), None)


MULTI_CONN = 1 << 8


def test_a_server_that_takes_several_connections_gets_as_many_as_there_is_work_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        held: list[tuple[asyncio.StreamWriter, Request]] = []

        async def holding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(oldstyle(1 << 20, nbd.HAS_FLAGS | nbd.FLUSH | MULTI_CONN))
            while (request := await read_request(reader)).kind != nbd.DISC:
                held.append((writer, request))

        path = tmp_path / "s"
        async with scripted(path, holding) as counts:
            node = await opened(path)
            reads = [asyncio.create_task(node.read(at * 512, 512)) for at in range(BUSY)]
            await settled(lambda: len(held) == BUSY)
            assert counts == [1]
            while len(reads) < 64:
                reads.append(asyncio.create_task(node.read(len(reads) * 512, 512)))
                await settled(lambda: len(held) == len(reads))
            assert counts == [CONNECTIONS]
            by_connection = [sum(writer is each for each, _ in held) for writer in {each for each, _ in held}]
            assert max(by_connection) - min(by_connection) <= BUSY
            for writer, request in held:
                writer.write(simple(request.cookie, 0, bytes(512)))
            await asyncio.gather(*reads)
            await node.close()

    asyncio.run(scenario())


def test_a_connection_that_a_server_does_not_take_is_done_without(tmp_path: Path) -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async def scenario() -> None:
        seen: list[Request] = []
        path = tmp_path / "s"
        flags = nbd.HAS_FLAGS | nbd.FLUSH | MULTI_CONN
        async with scripted(path, answering(seen, flags=flags), refusing) as counts:
            node = await opened(path)
            reads = [asyncio.create_task(node.read(at * 512, 512)) for at in range(64)]
            assert await asyncio.gather(*reads) == [bytes(512)] * 64
            await settled(lambda: counts == [1, 1])
            await asyncio.gather(*(node.read(at * 512, 512) for at in range(64)))
            await node.close()
            assert counts == [1, 1]

    asyncio.run(scenario())


def test_while_one_connection_is_gone_requests_go_over_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "s"
        flags = nbd.HAS_FLAGS | nbd.FLUSH | MULTI_CONN
        before: list[Request] = []
        after: list[Request] = []
        async with scripted(
            path, answering(before, flags=flags, most=BUSY * 2), answering(after, flags=flags)
        ):
            node = await opened(path, delay=5)
            for _ in range(2):
                await asyncio.gather(*(node.read(at * 512, 512) for at in range(BUSY * 2)))
            await node.close()
        assert len(after) >= BUSY * 2
        assert len(before) == BUSY * 2 + 1

    asyncio.run(scenario())
