"""Raw: its window, its odd last sector, and the format that a guest must not choose."""

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.command_line import good
from tests.support.turns import turns
from vblk.drivers.raw import SECTOR, Options, RawNode
from vblk.errors import NoSpace, OptionError, OutOfRange, StorageError, Unsupported
from vblk.extent import Kind
from vblk.formats.probe import PROBE_LENGTH, probe
from vblk.graph.edge import WRITING, Role
from vblk.graph.handle import Handle
from vblk.graph.node import coalesce
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import Size
from vblk.protocols.memory import MemoryNode
from vblk.testing import ReluctantNode
from vblk.units import KIB, OFFSET_MAX, align_up

QCOW2 = b"QFI\xfb" + (3).to_bytes(4, "big")


def window(offset: int, size: int | None) -> Options:
    return Options(Size(offset), None if size is None else Size(size))


def with_raw(
    scenario: Callable[[Handle, MemoryNode], Awaitable[None]],
    *,
    length: int = 8192,
    offset: int = 0,
    size: int | None = None,
    probed: bool = False,
    seed: int | None = None,
) -> None:
    """Run a scenario with a raw image over memory filled with 0xEE."""

    async def main() -> None:
        async with Graph() as graph:
            memory = MemoryNode("memory", size=length, data=b"\xee" * length)
            graph.add(memory)
            file: MemoryNode | ReluctantNode = memory
            if seed is not None:
                file = ReluctantNode("slow", memory, seed)
                file.put_over(graph)
            node = RawNode(
                "raw", "disk", read_only=False, file=file, options=window(offset, size), probed=probed
            )
            graph.add(node)
            graph.attach(node, Role.FILE, file)
            await scenario(graph.hold(node, "the test", WRITING), memory)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("offset", "size", "words"),
    [
        (-512, None, "negative"),
        (0, -512, "negative"),
        (8193, None, "cannot be greater than size"),
        (4096, 8192, "has to be smaller or equal"),
        (0, 8704, "has to be smaller or equal"),
        (0, 1000, "not multiple of 512"),
    ],
)
def test_an_impossible_window_is_refused(offset: int, size: int | None, words: str) -> None:
    file = MemoryNode("memory", size=8192)
    with pytest.raises(OptionError, match=words):
        RawNode("raw", "disk", read_only=True, file=file, options=window(offset, size))


def test_nothing_outside_the_window_changes() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        assert handle.size == 1024
        await handle.write(0, b"a" * 1024)
        await handle.write_zeroes(100, 10)
        await handle.discard(1000, 24)
        found = await memory.read(0, 8192)
        assert found[:777] == b"\xee" * 777
        assert found[777 + 1024 :] == b"\xee" * (8192 - 777 - 1024)
        with pytest.raises(OutOfRange):
            await handle.write(1020, b"12345")

    with_raw(scenario, offset=777, size=1024)


def test_a_window_of_fixed_size_is_not_resized() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        with pytest.raises(Unsupported, match="Cannot resize fixed-size raw disks"):
            await handle.resize(512)

    with_raw(scenario, size=1024)


def test_a_window_to_the_end_is_resized_with_its_file() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        await handle.resize(1024)
        assert (handle.size, memory.size) == (1024, 1524)
        with pytest.raises(OutOfRange, match="too large for the chosen offset"):
            await handle.resize(OFFSET_MAX - 100)

    with_raw(scenario, offset=500)


@pytest.mark.parametrize("offset", [0, 100, 512])
def test_an_odd_last_sector_is_filled_up_with_zeros(offset: int) -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        inside = 1000 - offset
        assert handle.size % SECTOR == 0
        wanted = b"\xee" * inside + bytes(handle.size - inside)
        assert await handle.read(0, handle.size) == wanted
        assert handle.try_read(0, handle.size) == wanted
        spans = coalesce(await handle.resolve(0, handle.size))
        assert [(span.kind, span.length) for span in spans] == [
            (Kind.DATA, inside),
            (Kind.ZERO, handle.size - inside),
        ]
        assert memory.size == 1000

    with_raw(scenario, length=1000, offset=offset)


def test_writing_to_an_odd_last_sector_makes_the_file_whole() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        await asyncio.gather(*(handle.write(1000 + index, b"x") for index in range(24)))
        assert memory.size == 1024
        assert await handle.read(999, 25) == b"\xee" + b"x" * 24

    with_raw(scenario, length=1000, seed=3)


def test_a_discard_beyond_the_file_does_not_reach_it() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        await handle.discard(1010, 10)
        assert memory.size == 1000
        await handle.discard(990, 34)
        assert await handle.read(990, 34) == bytes(34)

    with_raw(scenario, length=1000)


@pytest.mark.parametrize("signature", [b"vhdxfile", QCOW2, b"KDMV", b"conectix", b"# Disk DescriptorFile"])
@pytest.mark.parametrize("length", [8, 512, 4096])
def test_a_probed_image_cannot_be_made_another_format(signature: bytes, length: int) -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        data = signature + bytes(max(0, length - len(signature)))
        with pytest.raises(StorageError, match="name it with -f raw") as caught:
            await handle.write(0, data)
        assert caught.value.errno == errno.EPERM
        assert await memory.read(0, 8192) == b"\xee" * 8192

    with_raw(scenario, probed=True)


def test_a_named_raw_image_takes_any_bytes() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        await handle.write(0, b"vhdxfile")
        assert await memory.read(0, 8) == b"vhdxfile"

    with_raw(scenario)


def test_two_harmless_writes_cannot_make_a_format_together() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        await handle.write(0, b"vhdx")
        with pytest.raises(StorageError, match="vhdx"):
            await handle.write(4, b"file")
        await handle.write(4, b"fils")

    with_raw(scenario, probed=True)


def test_two_writes_at_once_cannot_make_a_format_either() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        results = await asyncio.gather(
            handle.write(0, b"vhdx"), handle.write(4, b"file"), return_exceptions=True
        )
        assert sum(isinstance(result, StorageError) for result in results) == 1
        assert probe(await memory.read(0, 512), 8192).format == "raw"

    with_raw(scenario, probed=True, seed=2)


def test_zeros_and_discards_cannot_make_a_format() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        await handle.write(0, b"QFI\xfb\xff\xff\xff\x02")
        with pytest.raises(StorageError, match="qcow2"):
            await handle.write_zeroes(4, 3)
        await handle.discard(4, 3)
        await handle.discard(0, 1024)
        assert await handle.read(0, 8) == b"QFI\xfb\xff\xff\xff\x02"
        assert await handle.read(512, 512) == bytes(512)
        await handle.write_zeroes(0, 4096)
        assert await handle.read(0, 4096) == bytes(4096)

    with_raw(scenario, probed=True)


def test_moved_bytes_cannot_make_a_format() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        async with Graph() as graph:
            source = MemoryNode("source", size=4096, data=b"vhdxfile" + b"s" * 4088)
            [span] = await source.resolve(0, 4096)
            with pytest.raises(StorageError, match="vhdx"):
                await Mover(graph.engine).move(span, handle.node, 0)
            [span] = await source.resolve(8, 4088)
            await Mover(graph.engine).move(span, handle.node, 8)
        assert await memory.read(0, 4096) == b"\xee" * 8 + b"s" * 4088

    with_raw(scenario, probed=True)


def test_a_cancelled_write_to_a_probed_first_sector_lets_the_next_one_in() -> None:
    async def scenario(handle: Handle, memory: MemoryNode) -> None:
        for count in range(12):
            task = asyncio.create_task(handle.write(0, b"x" * 600))
            await turns(count)
            task.cancel()
            await asyncio.wait([task])
        await asyncio.wait_for(handle.write(0, b"y" * 600), 30)
        assert await handle.read(0, 600) == b"y" * 600

    with_raw(scenario, probed=True, seed=4)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.sampled_from((0, 0x40, 500)), st.binary(min_size=1, max_size=64))
def test_no_format_is_told_by_bytes_after_the_first_sector(head: bytes, at: int, tail: bytes) -> None:
    data = bytearray(SECTOR)
    data[at : at + len(head)] = head
    data = data[:SECTOR]
    longer = (bytes(data) + tail).ljust(PROBE_LENGTH, b"\0")
    assert probe(longer, 1 << 20) == probe(bytes(data), 1 << 20)


@pytest.mark.parametrize("form", ["qcow2", "vhdx"])
def test_a_format_in_a_window_of_fixed_size_has_no_room(tmp_path: Path, form: str) -> None:
    path = tmp_path / "image"
    good("create", "-q", "-f", form, path, "64M")
    length = align_up(path.stat().st_size, 64 * KIB)
    os.truncate(path, length)
    file = {"driver": "file", "filename": str(path)}
    options = {"driver": form, "file": {"driver": "raw", "size": length, "file": file}}

    async def main() -> None:
        async with Graph() as graph:
            disk = await open_image(graph, "json:" + json.dumps(options), read_only=False)
            with pytest.raises(NoSpace):
                await disk.write(0, b"x" * (8 << 20))

    asyncio.run(main())
