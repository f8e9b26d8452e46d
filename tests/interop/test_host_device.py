"""Host devices: a loop device behaves as its file, and keeps its length."""

import os
import random
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.local_files import with_file
from vblk.errors import NoSpace, StorageError, Unsupported
from vblk.extent import Kind
from vblk.graph.node import Preallocation
from vblk.protocols.file import driver_for
from vblk.protocols.file_node import FileNode
from vblk.units import KIB, MIB

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("losetup") is None or not os.path.exists("/dev/loop-control"),
        reason="loop devices need root, losetup and a kernel that has them",
    ),
]

SIZE = 8 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def device(image: Path) -> Iterator[str]:
    attach = ["losetup", "--find", "--show", str(image)]
    name = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


def test_a_block_device_is_a_host_device(device: str) -> None:
    assert driver_for(device) == "host_device"


def test_a_block_device_is_no_file(device: str) -> None:
    async def unreachable(_: FileNode) -> None:
        raise AssertionError

    with pytest.raises(StorageError, match=f"'file' driver requires '{device}' to be a regular file"):
        with_file(device, unreachable, driver="file")


@pytest.mark.parametrize("cache", ["writeback", "none", "directsync"])
def test_any_sequence_equals_a_model(image: Path, device: str, cache: str) -> None:
    model = bytearray(image.read_bytes())
    chance = random.Random(2)

    async def scenario(node: FileNode) -> None:
        assert node.size == SIZE
        for _ in range(100):
            offset = chance.randrange(SIZE)
            length = min(chance.choice([1, 511, 512, 4096, 70_000, MIB]), SIZE - offset)
            match chance.randrange(4):
                case 0:
                    data = chance.randbytes(length)
                    await node.write(offset, data)
                    model[offset : offset + length] = data
                case 1:
                    await node.write_zeroes(offset, length, unmap=chance.random() < 0.5)
                    model[offset : offset + length] = bytes(length)
                case 2:
                    assert node.try_read(offset, length) in (None, bytes(model[offset : offset + length]))
                case _:
                    assert await node.read(offset, length) == model[offset : offset + length]
        await node.flush()

    with_file(device, scenario, driver="host_device", cache=cache)
    with_file(device, _reads(bytes(model)), driver="host_device", read_only=True)


def _reads(model: bytes) -> Callable[[FileNode], Awaitable[None]]:
    async def scenario(node: FileNode) -> None:
        assert await node.read(0, SIZE) == model

    return scenario


def test_a_discard_reaches_the_file_below(image: Path, device: str) -> None:
    async def scenario(node: FileNode) -> None:
        before = os.stat(image).st_blocks
        await node.discard(MIB + 100, 2 * MIB)
        await node.flush()
        assert os.stat(image).st_blocks <= before - (2 * MIB - 8 * KIB) // 512
        assert await node.read(MIB, 100) == bytes(random.Random(1).randbytes(SIZE)[MIB : MIB + 100])

    with_file(device, scenario, driver="host_device")


def test_cheap_zeros_are_only_those_that_unmap(device: str) -> None:
    async def scenario(node: FileNode) -> None:
        await node.write_zeroes(0, MIB, unmap=True, no_fallback=True)
        with pytest.raises(Unsupported):
            await node.write_zeroes(0, MIB, no_fallback=True)

    with_file(device, scenario, driver="host_device")


def test_a_device_keeps_its_length(device: str) -> None:
    async def scenario(node: FileNode) -> None:
        await node.resize(SIZE)
        await node.resize(MIB, exact=False)
        assert node.size == SIZE
        for size in (MIB, 2 * SIZE):
            with pytest.raises(Unsupported, match="Cannot resize device files"):
                await node.resize(size)
        with pytest.raises(Unsupported, match="Cannot grow device files"):
            await node.resize(2 * SIZE, exact=False)
        with pytest.raises(Unsupported, match="Unsupported preallocation mode: full"):
            await node.resize(SIZE, preallocation=Preallocation.FULL)
        with pytest.raises(NoSpace):
            await node.write(SIZE - 512, bytes(4096))

    with_file(device, scenario, driver="host_device")


def test_a_device_is_data_throughout_and_takes_no_space(device: str) -> None:
    async def scenario(node: FileNode) -> None:
        assert [(s.kind, s.length) for s in await node.allocation(0, SIZE)] == [(Kind.DATA, SIZE)]
        assert await node.allocated_bytes() == 0

    with_file(device, scenario, driver="host_device", read_only=True)
