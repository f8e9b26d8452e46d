"""A client is served in order, overtaken out of band, and given up when it does not read."""

import array
import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from vblk.graph.registry import Graph
from vblk.monitor.channel import WAITING_MAX, Channel
from vblk.monitor.commands import daemon_commands
from vblk.monitor.daemon import Daemon
from vblk.monitor.human import HumanMonitor
from vblk.monitor.human_server import HumanServer
from vblk.monitor.log import Log
from vblk.monitor.qmp_server import QmpServer
from vblk.monitor.table import CommandTable


class Peer:
    """The client's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._pending = b""

    async def send(self, text: str) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, text.encode())

    async def until(self, mark: bytes) -> bytes:
        """Return what comes until a mark, that included; less at the end."""
        while mark not in self._pending:
            data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
            if not data:
                return self._pending
            self._pending += data
        found, mark, self._pending = self._pending.partition(mark)
        return found + mark

    async def message(self) -> Any:
        return json.loads(await self.until(b"\n"))

    async def ask(self, command: str, **members: Any) -> Any:
        await self.send(json.dumps({"execute": command} | members))
        return await self.message()


class House:
    """A daemon, and the connections of its clients."""

    def __init__(self) -> None:
        self.said = StringIO()
        self.daemon = Daemon(Graph(), Log("daemon", self.said))
        self.commands = CommandTable(daemon_commands())
        self.running: list[asyncio.Task[None]] = []
        self.peers: list[Peer] = []

    def connect(self, *, human: bool = False) -> Peer:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        channel = Channel.of_socket(theirs)
        server = (
            HumanServer(HumanMonitor(self.daemon), channel)
            if human
            else QmpServer(self.daemon, self.commands, channel)
        )
        self.running.append(asyncio.create_task(server.run()))
        self.peers.append(Peer(ours))
        return self.peers[-1]

    async def greeted(self, **arguments: Any) -> Peer:
        peer = self.connect()
        assert "QMP" in await peer.message()
        assert await peer.ask("qmp_capabilities", arguments=arguments) == {"return": {}}
        return peer


@asynccontextmanager
async def house() -> AsyncGenerator[House]:
    place = House()
    try:
        yield place
    finally:
        for task in place.running:
            task.cancel()
        await asyncio.gather(*place.running, return_exceptions=True)
        await place.daemon.close()
        for peer in place.peers:
            peer.socket.close()


def test_requests_of_one_client_are_answered_in_order() -> None:
    async def session() -> None:
        async with house() as place:
            peer = await place.greeted()
            await peer.send(
                '{"execute": "query-version", "id": 1} nonsense {"execute": "x", "id": 2}\n'
                '{"execute": "query-jobs", "id": 3}'
            )
            answers = [await peer.message() for _ in range(4)]
            assert [answer.get("id") for answer in answers] == [1, None, 2, 3]
            assert answers[2]["error"]["class"] == "CommandNotFound"

    asyncio.run(session())


def test_a_command_out_of_band_overtakes_one_that_waits() -> None:
    async def session() -> None:
        async with house() as place:
            started, go = asyncio.Event(), asyncio.Event()

            async def waits(daemon: Daemon) -> None:
                started.set()
                await go.wait()

            place.commands.enter("waits", waits, None)
            peer = await place.greeted(enable=["oob"])
            other = await place.greeted()
            await peer.send('{"execute": "waits", "id": 1}{"execute": "query-jobs", "id": 2}')
            await started.wait()
            await peer.send('{"exec-oob": "job-cancel", "arguments": {"id": "j"}, "id": 3}')
            assert (await peer.message())["id"] == 3
            assert await other.ask("query-jobs") == {"return": []}
            await peer.send('{"exec-oob": "query-jobs", "id": 4}')
            refused = await peer.message()
            assert refused["error"]["desc"] == "The command query-jobs does not support OOB"
            go.set()
            assert [(await peer.message())["id"] for _ in range(2)] == [1, 2]

    asyncio.run(session())


def test_a_command_out_of_band_is_carried_out_though_its_client_says_no_more() -> None:
    async def session() -> None:
        async with house() as place:
            peer = await place.greeted(enable=["oob"])
            await peer.send('{"exec-oob": "quit", "id": 1}')
            peer.socket.shutdown(socket.SHUT_WR)
            assert await peer.message() == {"return": {}, "id": 1}
            assert place.daemon.ended.is_set()

    asyncio.run(session())


@pytest.mark.parametrize("human", [False, True])
def test_others_have_their_turn_while_a_client_never_stops_sending(human: bool) -> None:
    async def session() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        others_turn = asyncio.Event()
        daemon = Daemon(Graph(), Log("daemon", StringIO()))

        class Flood(Channel):
            """A client whose next bytes are always there, until somebody else was served."""

            def _read(self) -> bytes:
                return b"" if others_turn.is_set() or next(left, None) is None else b" " * 64

        left = iter(range(100_000))
        channel = Flood(theirs.fileno(), theirs.fileno(), peer=theirs)
        server = (
            HumanServer(HumanMonitor(daemon), channel)
            if human
            else QmpServer(daemon, daemon_commands(), channel)
        )
        asyncio.get_running_loop().call_later(0, others_turn.set)
        await server.run()
        assert next(left, None) is not None, "the other one had to wait until the flood was over"
        ours.close()
        await daemon.close()

    asyncio.run(session())


def test_events_go_to_everybody_who_has_negotiated() -> None:
    async def session() -> None:
        async with house() as place:
            first, second = await place.greeted(), await place.greeted()
            silent = place.connect()
            assert "QMP" in await silent.message()
            place.daemon.emit("BLOCK_EXPORT_DELETED", {"id": "e"})
            for peer in (first, second):
                event = await peer.message()
                assert (event["event"], event["data"]) == ("BLOCK_EXPORT_DELETED", {"id": "e"})
            assert "return" in await silent.ask("qmp_capabilities")

    asyncio.run(session())


def test_a_client_that_takes_no_events_is_cut_off_with_a_word_and_others_are_not() -> None:
    async def session() -> None:
        async with house() as place:
            slow, quick = await place.greeted(), await place.greeted()
            id = "x" * 1000
            for _ in range(WAITING_MAX // 1000 + 1000):
                place.daemon.emit("BLOCK_EXPORT_DELETED", {"id": id})
                await quick.message()
            assert await quick.ask("query-jobs") == {"return": []}
            done, _ = await asyncio.wait(place.running[:1], timeout=10)
            assert len(done) == 1
            slow.socket.close()
        assert place.said.getvalue() == "daemon: a QMP client took no events; it was cut off\n"

    asyncio.run(session())


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async def session() -> None:
        async with house() as place:
            slow, quick = await place.greeted(), await place.greeted()
            sent = 0
            question = b'{"execute": "query-qmp-schema"}' * 64
            try:
                while sent < 64 << 20:
                    sent += slow.socket.send(question)
                    await quick.ask("query-jobs")
            except BlockingIOError:
                pass
            assert sent < 64 << 20
            assert not place.running[0].done()

    asyncio.run(session())


def test_a_defect_is_told_to_the_log_and_not_to_the_client() -> None:
    async def session() -> None:
        async with house() as place:

            async def breaks(daemon: Daemon) -> None:
                raise ZeroDivisionError("secret")

            place.commands.enter("breaks", breaks, None)
            peer = await place.greeted()
            assert (await peer.ask("breaks"))["error"] == {
                "class": "GenericError",
                "desc": "internal error: ZeroDivisionError",
            }
            assert await peer.ask("query-jobs") == {"return": []}
            assert "internal error in QMP command breaks: ZeroDivisionError: secret" in place.said.getvalue()

    asyncio.run(session())


def test_a_client_that_hangs_up_in_the_middle_is_forgotten() -> None:
    async def session() -> None:
        async with house() as place:
            for sent in (b"", b'{"execute": "qmp_capa', b'{"execute": "qmp_capabilities"}{"exe', b"[[[["):
                peer = place.connect()
                peer.socket.send(sent)
                peer.socket.close()
            await asyncio.wait(place.running, timeout=10)
            assert all(task.done() for task in place.running)
            assert place.daemon.listeners == []

    asyncio.run(session())


def test_descriptors_that_nobody_takes_are_closed() -> None:
    async def session() -> None:
        async with house() as place:
            peer = await place.greeted()
            before = len(os.listdir("/proc/self/fd"))
            reading, writing = os.pipe()
            passed = array.array("i", [writing] * 4)
            for _ in range(8):
                peer.socket.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            os.close(writing)
            assert await peer.ask("query-jobs") == {"return": []}
            peer.socket.close()
            await asyncio.wait(place.running, timeout=10)
            os.close(reading)
            assert len(os.listdir("/proc/self/fd")) <= before

    asyncio.run(session())


def test_a_person_gets_a_banner_a_prompt_and_answers() -> None:
    async def session() -> None:
        async with house() as place:
            peer = place.connect(human=True)
            assert await peer.until(b"(qemu) ") == (
                b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) "
            )
            await peer.send("info block-jobs\n")
            assert await peer.until(b"(qemu) ") == b"info block-jobs\r\nNo active jobs\r\n(qemu) "
            await peer.send("x" * 100_000)
            assert b"the line is too long" in await peer.until(b"(qemu) ")
            await peer.send("\n\nquit\n")
            await asyncio.wait_for(place.daemon.ended.wait(), 10)

    asyncio.run(session())


def test_a_person_who_hits_a_defect_is_told_so_and_goes_on() -> None:
    async def session() -> None:
        async with house() as place:
            peer = place.connect(human=True)
            await peer.until(b"(qemu) ")
            place.daemon.version = {"qemu": {}}
            await peer.send("info version\n")
            assert b"Error: internal error: KeyError\r\n(qemu) " in await peer.until(b"(qemu) ")
            assert "internal error in the human monitor: KeyError: 'major'" in place.said.getvalue()

    asyncio.run(session())


def test_files_are_opened_from_descriptors_that_clients_passed(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(4096))

    async def session() -> None:
        async with house() as place:
            peer = await place.greeted()

            async def pass_on(flags: int, **arguments: Any) -> Any:
                fd = os.open(tmp_path / "a.raw", flags)
                text = json.dumps({"execute": "add-fd", "arguments": arguments}).encode()
                peer.socket.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
                os.close(fd)
                return (await peer.message())["return"]

            async def add(name: str, number: int | str, *, read_only: bool = False) -> Any:
                options = {"driver": "file", "node-name": name, "filename": f"/dev/fdset/{number}"}
                reply = await peer.ask("blockdev-add", arguments=options | {"read-only": read_only})
                return reply.get("error", {}).get("desc")

            assert (await pass_on(os.O_RDWR))["fdset-id"] == 0
            assert (await pass_on(os.O_RDONLY, opaque="for reading"))["fdset-id"] == 1
            sets = (await peer.ask("query-fdsets"))["return"]
            assert [each["fdset-id"] for each in sets] == [1, 0]
            assert sets[0]["fds"][0]["opaque"] == "for reading"
            (tmp_path / "a.raw").unlink()
            assert await add("w", 0) is None
            assert await add("x", 1) == "Could not dup FD for /dev/fdset/1 flags 2: Permission denied"
            assert await add("x", 7) == "Could not dup FD for /dev/fdset/7 flags 2: No such file or directory"
            assert await add("x", "y") == "Could not parse fdset /dev/fdset/y"
            assert await peer.ask("remove-fd", arguments={"fdset-id": 0}) == {"return": {}}
            missing = await peer.ask("remove-fd", arguments={"fdset-id": 0, "fd": 99})
            assert missing["error"]["desc"] == "File descriptor named 'fdset-id:0, fd:99' not found"
            human = {"command-line": 'qemu-io w "write -P 1 0 512"'}
            answer = await peer.ask("human-monitor-command", arguments=human)
            assert answer["return"].startswith("wrote 512/512")

    asyncio.run(session())


def test_named_descriptors_belong_to_a_connection() -> None:
    async def session() -> None:
        async with house() as place:
            peer, other = await place.greeted(), await place.greeted()
            reading, writing = os.pipe()

            async def keep(name: str) -> Any:
                text = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode()
                passed = array.array("i", [writing])
                peer.socket.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
                return await peer.message()

            named = {"fdname": "a"}
            assert (await peer.ask("getfd", arguments=named))["error"]["desc"] == (
                "No file descriptor supplied via SCM_RIGHTS"
            )
            assert (await keep("1a"))["error"]["desc"] == (
                "Parameter 'fdname' expects a name not starting with a digit"
            )
            assert await keep("a") == {"return": {}}
            assert await keep("a") == {"return": {}}
            os.close(writing)
            refused = await other.ask("closefd", arguments=named)
            assert refused["error"]["desc"] == "File descriptor named 'a' not found"
            assert await peer.ask("closefd", arguments=named) == {"return": {}}
            assert os.read(reading, 1) == b""  # nobody holds the other end any more
            os.close(reading)

    asyncio.run(session())
