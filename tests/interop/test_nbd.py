"""Exports of other people's servers: the same disks, words and failures as QEMU's client finds."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import vblk
from tests.support.command_line import REPOSITORY, call, good
from tests.support.nbd import Server, nbdkit, qemu_nbd
from tests.support.nodes import content_of, run
from vblk.extent import Kind
from vblk.graph.edge import WRITING
from vblk.graph.node import coalesce
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import from_mapping
from vblk.protocols.nbd import CONNECTIONS
from vblk.protocols.nbd_node import NbdNode
from vblk.testing import Factory, Subject, check_conformance

pytestmark = pytest.mark.interop

SIZE = 256 << 10


def qemu(*words: str | Path) -> str:
    return subprocess.run(list(words), check=True, capture_output=True, text=True).stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(content_of(SIZE))
    return path


VARIANTS = {
    "oldstyle": ("--oldstyle", "--readonly"),  # it announces a flush there, and refuses it
    "newstyle-not-fixed": ("--mask-handshake=0",),
    "simple-replies": ("--no-sr",),
    "no-zeroing-no-extents": ("--filter=nozero", "--filter=noextents"),
    "emulated-fua-fast-zero": ("--filter=fua", "--filter=nozero", "fuamode=force", "zeromode=plugin"),
    "small-requests": ("--filter=blocksize-policy", "blocksize-minimum=1", "blocksize-maximum=4096"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_server_keeps_all_promises(variant: str, tmp_path: Path) -> None:
    @asynccontextmanager
    async def make() -> AsyncGenerator[Subject]:
        content = content_of(SIZE)
        path = tmp_path / "disk.img"
        with open(path, "wb") as file:  # noqa: ASYNC230
            file.write(content)
        options = [word for word in VARIANTS[variant] if word.startswith("--")]
        settings = [word for word in VARIANTS[variant] if not word.startswith("--")]
        with Server(
            tmp_path, "nbdkit", "-f", "--exit-with-parent", *options, "file", str(path), *settings
        ) as server:
            async with Graph() as graph:
                address = {"type": "unix", "path": str(server.path)}
                mapping = {"driver": "nbd", "server": address}
                node = await open_node(graph, from_mapping(mapping), Request("--readonly" in options))
                yield Subject(graph, node, content, resizable=False)

    factory: Factory = make
    run(check_conformance(factory))


def test_reports_are_qemus(image: Path, tmp_path: Path) -> None:
    with open(image, "r+b") as file:
        file.truncate(0)
        file.write(b"x" * 4096)
        file.seek(SIZE - 4096)
        file.write(b"x" * 4096)
    with qemu_nbd(tmp_path, image, "-x", "disk") as server:
        node = {"driver": "nbd", "path": str(server.path), "export": "disk"}
        names = (
            server.uri("disk"),
            f"nbd:unix:{server.path}:exportname=disk",
            "json:" + json.dumps({"driver": "raw", "file": node}),
        )
        for name in names:
            assert good("info", name, program="qemu-img") == qemu("qemu-img", "info", name)
        name = names[0]
        assert good("map", "-f", "raw", name, program="qemu-img") == qemu(
            "qemu-img", "map", "-f", "raw", name
        )
        ours, theirs = (
            json.loads(text)
            for text in (
                good("map", "--output", "json", name), qemu("qemu-img", "map", "--output", "json", name)
            )
        )  # fmt: skip
        assert ours == theirs
        assert [extent["zero"] for extent in ours] == [False, True, False]


@pytest.mark.parametrize("name", ["nbd:foo", "nbd://", "nbd+unix:///x", "nbd+unix:///x?socket=/nowhere/s"])
def test_names_that_lead_nowhere_are_refused_in_qemus_words(name: str) -> None:
    theirs = subprocess.run(["qemu-img", "info", name], capture_output=True, text=True)
    ours = call("info", name, program="qemu-img")
    assert (ours.status, ours.err) == (theirs.returncode, theirs.stderr)


def test_a_missing_export_is_refused_in_qemus_words_and_those_that_are_there_are_listed(
    image: Path, tmp_path: Path
) -> None:
    with qemu_nbd(tmp_path, image, "-x", "disk") as server:
        name = server.uri("dusk")
        theirs = subprocess.run(["qemu-img", "info", name], capture_output=True, text=True)
        ours = call("info", name, program="qemu-img")
        assert (ours.status, ours.err) == (theirs.returncode, theirs.stderr)
        assert "the server's exports are 'disk'" in call("info", name).err


def test_disks_are_copied_from_one_server_to_another(image: Path, tmp_path: Path) -> None:
    with qemu_nbd(tmp_path, image, "-r") as source, nbdkit(tmp_path, "memory", f"{SIZE}") as target:
        good("convert", "-n", "-f", "raw", source.uri(), target.uri())
        good("convert", target.uri(), tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == content_of(SIZE)
        good("compare", "-q", source.uri(), target.uri())
        good("dd", f"if={target.uri()}", f"of={tmp_path}/part", "bs=4096", "count=20", "skip=10")
        assert (tmp_path / "part").read_bytes() == content_of(SIZE)[40960 : 30 * 4096]
        copied = subprocess.run(["nbdcopy", target.uri(), "-"], check=True, capture_output=True).stdout
        assert copied == content_of(SIZE)


def test_an_export_over_tcp_is_read(image: Path, tmp_path: Path) -> None:
    with Server(tmp_path, "nbdkit", "-f", "--exit-with-parent", "-r", "file", str(image), tcp=True) as server:
        good("compare", "-q", f"nbd://127.0.0.1:{server.port}", image)
        good("compare", "-q", f"nbd:127.0.0.1:{server.port}", image)


def test_a_vhdx_over_a_server_is_read_and_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk.vhdx"
    qemu("qemu-img", "create", "-q", "-f", "vhdx", disk, "8M")
    with open(disk, "r+b") as file:
        file.truncate(32 << 20)  # an export does not grow, so its room is there before
    with qemu_nbd(tmp_path, disk) as server:
        good("io", "-f", "vhdx", "-c", "write -P 7 1M 100k", "-c", "flush", server.uri())
        good("io", "-f", "vhdx", "-c", "read -P 7 1M 100k", server.uri())
        assert '"format": "vhdx"' in good("info", "--output", "json", server.uri())
    qemu("qemu-io", "-r", "-f", "vhdx", "-c", "read -P 7 1M 100k", disk)
    good("check", disk)


def test_every_write_arrives_though_the_server_is_killed_between_them(image: Path, tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        options = {
            "driver": "nbd",
            "server": {"type": "unix", "path": str(server.path)},
            "reconnect-delay": 3600,
        }
        async with vblk.open(f"json:{json.dumps(options)}", read_only=False) as disk:
            for kills in range(4):
                writes = [
                    asyncio.create_task(disk.write(at, bytes([kills + 1]) * 4096))
                    for at in range(0, SIZE, 4096)
                ]
                await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
                server.kill()
                server.start()
                await asyncio.gather(*writes)
            await disk.flush()

    with nbdkit(tmp_path, "file", str(image)) as server:
        asyncio.run(scenario(server))
    assert image.read_bytes() == b"\x04" * SIZE


def test_errors_of_the_server_end_a_request_and_not_the_disk(image: Path, tmp_path: Path) -> None:
    trigger = tmp_path / "fail"
    trigger.touch()
    faults = ("error=EIO", "error-pread-rate=100%", f"error-file={trigger}")
    with nbdkit(tmp_path, "file", str(image), *faults, filters=("error",)) as server:

        async def scenario() -> None:
            async with vblk.open(server.uri(), format="raw") as disk:
                with pytest.raises(vblk.StorageError, match="Input/output error"):
                    await disk.read(0, 4096)
                trigger.unlink()
                assert await disk.read(0, 4096) == content_of(SIZE)[:4096]

        asyncio.run(scenario())


def test_a_full_server_is_reported_as_such(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "full", "1M") as server:
        outcome = call("-f", "raw", "-c", "write 0 4k", server.uri(), program="qemu-io")
        assert "write failed: No space left on device" in outcome.out + outcome.err


def test_an_export_for_reading_only_is_read_and_not_written(image: Path, tmp_path: Path) -> None:
    with qemu_nbd(tmp_path, image, "-r") as server:
        good("io", "-r", "-f", "raw", "-c", "read 0 512", server.uri())
        outcome = call("io", "-f", "raw", "-c", "write 0 512", server.uri())
        assert outcome.status == 1
        assert "for reading only" in outcome.err


def test_our_own_server_is_asked_with_64_bit_lengths_over_several_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    size = 6 << 30
    image = tmp_path / "disk.raw"
    with open(image, "wb") as file:
        file.truncate(size)
        file.seek(5 << 30)
        file.write(content_of(SIZE))

    async def scenario(path: Path) -> None:
        async with Graph() as graph:
            address = {"type": "unix", "path": str(path)}
            node = await open_node(graph, from_mapping({"driver": "nbd", "server": address}), Request(False))
            handle = graph.hold(node, "test", WRITING)
            assert isinstance(node, NbdNode)
            assert node.export.extended
            spans = [(span.kind, span.length) for span in coalesce(await node.allocation(0, size))]
            assert spans == [(Kind.ZERO, 5 << 30), (Kind.DATA, SIZE), (Kind.ZERO, (1 << 30) - SIZE)]
            pieces = await asyncio.gather(*(handle.read((5 << 30) + at, 4096) for at in range(0, SIZE, 4096)))
            assert b"".join(pieces) == content_of(SIZE)
            await handle.write_zeroes(0, size, unmap=True)
            await handle.write(4096, b"x" * 4096)
            await handle.flush()

    program = (sys.executable, "-P", "-c", "from vblk.cli.main import run; run()")
    with Server(
        tmp_path, *program, "nbd", "-t", "-e", "8", "-f", "raw", "--discard=unmap", str(image)
    ) as server:
        asyncio.run(scenario(server.path))
    with open(image, "rb") as written:
        assert written.read(12288) == bytes(4096) + b"x" * 4096 + bytes(4096)
        assert os.lseek(written.fileno(), 1 << 20, os.SEEK_HOLE) == 1 << 20
    assert image.stat().st_blocks * 512 < 1 << 20


def test_a_server_whose_answers_take_long_is_asked_over_several_connections(
    image: Path, tmp_path: Path
) -> None:
    async def scenario(path: Path) -> None:
        async with Graph() as graph:
            address = {"type": "unix", "path": str(path)}
            node = await open_node(graph, from_mapping({"driver": "nbd", "server": address}), Request(False))
            handle = graph.hold(node, "test", WRITING)
            assert isinstance(node, NbdNode)
            offsets = range(0, SIZE, 4096)
            while len(node._pool._links) < CONNECTIONS:
                pieces = await asyncio.gather(*(handle.read(at, 4096) for at in offsets))
                assert b"".join(pieces) == content_of(SIZE)
            await asyncio.gather(*(handle.write(at, at.to_bytes(4096, "big")) for at in offsets))
            await handle.flush()

    delays = ("rdelay=20ms", "wdelay=20ms")
    with nbdkit(tmp_path, "file", str(image), *delays, filters=("delay",)) as server:
        asyncio.run(scenario(server.path))
    assert image.read_bytes() == b"".join(at.to_bytes(4096, "big") for at in range(0, SIZE, 4096))
