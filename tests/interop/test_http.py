"""Images on a real web server, nginx: read, converted, compared, served; changed behind our back."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.command_line import call, good
from tests.support.named_nodes import leaf
from tests.support.nodes import content_of, run
from tests.support.web import Nginx
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import open_node
from vblk.testing import Subject, check_conformance

pytestmark = pytest.mark.interop

MIB = 1 << 20


@pytest.fixture
def nginx(tmp_path: Path) -> Generator[Nginx, None, None]:
    with Nginx(tmp_path / "web") as server:
        yield server


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_image_on_a_web_server_keeps_all_promises_of_reading(nginx: Nginx, loop: str) -> None:
    content = content_of(3 * MIB)
    (nginx.files / "disk").write_bytes(content)

    @asynccontextmanager
    async def make() -> AsyncGenerator[Subject]:
        async with Graph() as graph:
            node = await open_node(graph, leaf(nginx.name("disk")), Request())
            yield Subject(graph, node, content)

    run(check_conformance(make), loop)


@pytest.mark.parametrize("folder", ["", "moved/"])
def test_a_vhdx_is_looked_at_checked_compared_and_converted(
    nginx: Nginx, tmp_path: Path, folder: str
) -> None:
    raw, back = tmp_path / "disk.raw", tmp_path / "back.raw"
    raw.write_bytes(content_of(5 * MIB) + bytes(59 * MIB))
    good("convert", "-f", "raw", "-O", "vhdx", raw, nginx.files / "disk.vhdx")
    name = nginx.name(f"{folder}disk.vhdx")
    assert "virtual size: 64 MiB" in good("info", name)
    good("check", name)
    good("compare", "-F", "raw", name, raw)
    good("convert", "-O", "raw", name, back)
    assert back.read_bytes() == raw.read_bytes()
    assert good("io", "-r", "-c", "read -v 0 16", name).startswith("00000000:  ")
    assert sum("/moved/" in line for line in nginx.requests()) == (5 if folder else 0)


def test_a_sparse_image_costs_the_transfer_of_its_data(nginx: Nginx, tmp_path: Path) -> None:
    raw, back = tmp_path / "disk.raw", tmp_path / "back.raw"
    with raw.open("wb") as file:
        file.write(content_of(16 * MIB))
        file.truncate(8 << 30)
    good("convert", "-f", "raw", "-O", "vhdx", raw, nginx.files / "disk.vhdx")
    good("convert", "-O", "raw", nginx.name("disk.vhdx"), back)
    sent = sum(int(line.split()[1]) for line in nginx.requests())
    assert 16 * MIB < sent < 20 * MIB


def test_nothing_is_written_there(nginx: Nginx) -> None:
    (nginx.files / "disk").write_bytes(bytes(MIB))
    refused = call("io", "-f", "raw", "-c", "write 0 1k", nginx.name("disk"))
    assert refused.status == 1
    assert "images on web servers are read, not written" in refused.err
    assert (nginx.files / "disk").read_bytes() == bytes(MIB)


def test_what_is_not_there_or_empty_is_said(nginx: Nginx) -> None:
    missing = call("info", nginx.name("none"))
    assert (missing.status, missing.out) == (1, "")
    assert "The requested URL returned error: 404" in missing.err
    (nginx.files / "empty").write_bytes(b"")
    assert "virtual size: 0 B" in good("info", "-f", "raw", nginx.name("empty"))
