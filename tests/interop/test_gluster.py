"""Files on a real glusterd's volumes: every name, every command, and bricks that die."""

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.command_line import call, good
from tests.support.filesystems import needs_root
from tests.support.gluster import Gluster
from tests.support.named_nodes import leaf, opened
from tests.support.nodes import content_of, run
from vblk.errors import BlockError
from vblk.graph.edge import WRITING
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.options import NodeOptions
from vblk.testing import Subject, check_conformance

pytestmark = [pytest.mark.interop, needs_root]

MIB = 1 << 20


@pytest.fixture(scope="module")
def gluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Gluster, None, None]:
    with Gluster(tmp_path_factory.mktemp("gluster")) as server:
        server.make_volume("spread", 2)
        server.make_volume("twice", 3, replicated=True)
        yield server


@pytest.mark.parametrize(
    ("volume", "loop", "read_only"),
    [("spread", "asyncio", False), ("twice", "uvloop", False), ("spread", "uvloop", True)],
)
def test_a_file_on_a_volume_keeps_all_promises(
    gluster: Gluster, volume: str, loop: str, read_only: bool
) -> None:
    content = content_of(256 * 1024)
    name = gluster.name(volume, f"{loop}-{read_only}")
    good("create", "-q", "-f", "raw", name, "0")

    @asynccontextmanager
    async def make() -> AsyncGenerator[Subject]:
        async with Graph() as graph:
            node = await opened(graph, name)
            await node.resize(0)
            await node.write(0, content)
        async with Graph() as graph:
            node = await open_node(graph, leaf(name), Request(read_only=read_only))
            yield Subject(graph, node, content)

    run(check_conformance(make), loop)


@pytest.mark.parametrize("volume", ["spread", "twice"])
def test_a_vhdx_is_made_written_and_read_there_and_qemu_finds_it_whole_on_the_bricks(
    gluster: Gluster, tmp_path: Path, volume: str
) -> None:
    name, raw, back = gluster.name(volume, "disk.vhdx"), tmp_path / "disk.raw", tmp_path / "back.raw"
    raw.write_bytes(content_of(5 * MIB) + bytes(2 * MIB))
    good("create", "-f", "vhdx", name, "7M", "-q")
    good("convert", "-n", "-f", "raw", "-O", "vhdx", raw, name)
    good("io", "-c", "write -P 5 6M 64k", "-c", "flush", name)
    with raw.open("r+b") as file:
        file.seek(6 * MIB)
        file.write(b"\5" * 65536)
    copies = gluster.files(volume, "disk.vhdx")
    assert len(copies) == (3 if volume == "twice" else 1)
    for image in copies:
        subprocess.run(["qemu-img", "check", str(image)], check=True, capture_output=True)
        subprocess.run(
            ["qemu-img", "compare", str(image), "-F", "raw", str(raw)], check=True, capture_output=True
        )
    good("check", name)
    good("compare", "-F", "raw", name, raw)
    good("convert", "-O", "raw", name, back)
    assert back.read_bytes() == raw.read_bytes()


def test_every_name_and_the_properties_lead_to_the_file(gluster: Gluster) -> None:
    name = gluster.name("spread", "named")
    good("create", "-q", "-f", "raw", name, "1M")
    inet = f"file.server.0.type=inet,file.server.0.host={gluster.address},file.server.0.port=24007"
    unix = f"file.server.1.type=unix,file.server.1.path={gluster.socket}"
    host = gluster.address
    for words in (
        (f"gluster://{host}/spread/named",),
        (f"gluster://{host}:24007/spread/named",),
        (f"gluster://{host}:0/spread//named",),
        (f"gluster+tcp://{host}/spread/named",),
        (f"gluster+unix:///spread/named?socket={gluster.socket}",),
        (f"gluster+rdma://{host}/spread/named",),
        ("--image-opts", f"driver=raw,file.driver=gluster,file.volume=spread,file.path=named,{inet},{unix}"),
        (
            "--image-opts",
            f"driver=raw,file.driver=gluster,file.volume=spread,file.path=named,file.debug=0,{inet}",
        ),
    ):
        assert "virtual size: 1 MiB" in good("info", *(() if words[0][0] == "-" else ("-f", "raw")), *words)


def test_servers_are_tried_one_after_the_other(gluster: Gluster) -> None:
    name = gluster.name("spread", "several")
    good("create", "-q", "-f", "raw", name, "1M")
    dead = "file.server.0.type=inet,file.server.0.host=127.0.0.1,file.server.0.port=1"
    alive = f"file.server.1.type=inet,file.server.1.host={gluster.address},file.server.1.port=24007"
    common = "driver=raw,file.driver=gluster,file.volume=spread,file.path=several"
    assert "virtual size: 1 MiB" in good("info", "--image-opts", f"{common},{dead},{alive}")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("spread/none", "failed to open 'none' on volume 'spread': No such file or directory"),
        ("nothing/none", "Gluster connection for volume nothing, path none failed to connect"),
        ("spread/.", "failed to open '.' on volume 'spread': Is a directory"),
    ],
)
def test_what_is_not_there_is_named(gluster: Gluster, path: str, text: str) -> None:
    result = call("info", "-f", "raw", f"gluster://{gluster.address}/{path}")
    assert (result.status, result.out) == (1, "")
    assert text in result.err


def test_nobody_waits_for_a_server_that_is_not_there(gluster: Gluster) -> None:
    result = call("info", f"gluster://{gluster.address}:1/spread/disk")
    assert (result.status, result.out) == (1, "")
    assert f"hint: failed on host {gluster.address} and port 1 " in result.err


def test_files_of_one_volume_share_a_connection_and_work_side_by_side(gluster: Gluster) -> None:
    async def scenario() -> None:
        async with Graph() as graph:
            names = [gluster.name("spread", f"side-{number}") for number in range(4)]
            nodes = [await opened(graph, name) for name in names]
            await asyncio.gather(
                *(
                    node.write(at * 4096, bytes([number]) * 4096)
                    for number, node in enumerate(nodes)
                    for at in range(64)
                )
            )
            for number, node in enumerate(nodes):
                assert await node.read(0, 64 * 4096) == bytes([number]) * 64 * 4096

    for number in range(4):
        good("create", "-q", "-f", "raw", gluster.name("spread", f"side-{number}"), "1M")
    asyncio.run(scenario())


def test_a_cancelled_read_leaves_its_memory_alone(gluster: Gluster) -> None:
    name = gluster.name("spread", "cancelled")
    good("create", "-q", "-f", "raw", name, "8M")

    async def scenario() -> None:
        async with Graph() as graph:
            node = await opened(graph, name)
            await node.write(0, b"\7" * 8 * MIB)
            buffer = bytearray(8 * MIB)
            reading = asyncio.ensure_future(node.read_into(0, memoryview(buffer)))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            before = bytes(buffer)
            assert await node.read(0, 4096) == b"\7" * 4096
            assert bytes(buffer) == before

    asyncio.run(scenario())


def test_holes_are_seen_and_zeros_take_no_space(gluster: Gluster) -> None:
    name = gluster.name("spread", "holes")
    good("create", "-q", "-f", "raw", name, "1G")
    good("io", "-f", "raw", "-c", "write -P 9 100M 1M", "-c", "write -z -u 100M 512k", name)
    (brick,) = gluster.files("spread", "holes")
    assert brick.stat().st_blocks * 512 <= MIB
    assert good("map", "-f", "raw", name).splitlines()[1].split()[:2] == ["0x6480000", "0x80000"]


def test_a_brick_that_dies_among_writes_loses_nothing_of_a_replicated_volume(
    gluster: Gluster, tmp_path: Path
) -> None:
    gluster.make_volume("mortal", 3, replicated=True)
    name, back = gluster.name("mortal", "disk.vhdx"), tmp_path / "back.raw"
    good("create", "-q", "-f", "vhdx", name, "64M")

    async def scenario() -> None:
        async with Graph() as graph:
            options = NodeOptions(driver="vhdx", children={"file": leaf(name)})
            node = await open_node(graph, options, Request(read_only=False))
            handle = graph.hold(node, "the test", WRITING)
            for number in range(256):
                if number == 100:
                    await asyncio.to_thread(gluster.kill_brick, "mortal", 0)
                await handle.write(number * 256 * 1024, bytes([number]) * 4096)
                if number % 32 == 0:
                    await handle.flush()
            await handle.flush()

    asyncio.run(scenario())
    good("check", name)
    good("convert", "-O", "raw", name, back)
    data = back.read_bytes()
    for number in range(256):
        assert data[number * 256 * 1024 :][:4096] == bytes([number]) * 4096


def test_a_volume_without_bricks_fails_with_its_name_and_hangs_nobody(gluster: Gluster) -> None:
    gluster.make_volume("gone", 1)
    name = gluster.name("gone", "disk")
    good("create", "-q", "-f", "raw", name, "1M")

    async def scenario() -> None:
        async with Graph() as graph:
            node = await opened(graph, name)
            await asyncio.to_thread(gluster.kill_brick, "gone", 0)
            with pytest.raises(BlockError) as caught:
                await node.read(0, 4096)
            assert caught.value.filename == name

    asyncio.run(scenario())
