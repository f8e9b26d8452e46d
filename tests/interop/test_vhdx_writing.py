"""What vblk writes, others read; what others leave in a log, vblk replays, and the other way round."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

import vblk
from tests.support.readers import dissect, qemu_sha256, seven_zip_sha256, sha256_through, vhdi
from tests.support.vhdx.model import Model
from vblk.drivers.vhdx import VhdxNode
from vblk.drivers.vhdx_create import create_image, parent_facts
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import NodeOptions
from vblk.units import KIB, MIB

pytestmark = pytest.mark.interop

SIZE = 40 * MIB


async def create(path: Path, new: NewVhdx) -> None:
    with open(path, "wb"):  # noqa: ASYNC230
        pass
    async with Graph() as graph:
        options = NodeOptions(driver="file", own={"filename": str(path)})
        handle = await open_image(graph, options, read_only=False)
        await create_image(handle.node, new)


async def create_child(path: Path, parent: Path, block_size: int) -> None:
    async with vblk.open(parent) as disk:
        assert isinstance(disk.node, VhdxNode)
        facts = await parent_facts(disk.node, str(path), str(parent))
    await create(path, NewVhdx(parent=facts, block_size=block_size))


async def scribble(disk: vblk.Disk, model: Model, seed: int, *, trim: bool = True, align: int = 1) -> None:
    """Write all over a disk, and over its model."""
    chance = Random(seed)
    for number in range(120):
        offset = chance.randrange(model.size) // align * align
        length = min(chance.choice((512, 4 * KIB, 70 * KIB, MIB, 3 * MIB)), model.size - offset)
        kind = chance.random()
        if kind < 0.75 or not trim:
            data = chance.randbytes(length)
            await disk.write(offset, data)
            model.write(offset, data)
        elif kind < 0.9:
            await disk.write_zeroes(offset, length, unmap=number % 2 == 0)
            model.zero(offset, length)
        else:
            await disk.discard(offset, length)
            model.write(offset, await disk.read(offset, length))
        if number % 25 == 0:
            await disk.flush()


async def make(path: Path, new: NewVhdx, seed: int, *, resize: bool = False) -> Model:
    await create(path, new)
    assert new.size is not None
    model = Model(new.size)
    async with vblk.open(path, read_only=False) as disk:
        await scribble(disk, model, seed)
        if resize:
            for size in (70 * MIB, 23 * MIB + 4 * KIB, 51 * MIB):
                await disk.resize(size)
                model = model.copy(size)
                await scribble(disk, model, seed + size)
    return model


IMAGES = {
    "dynamic": NewVhdx(size=SIZE, block_size=MIB),
    "large blocks": NewVhdx(size=SIZE, block_size=16 * MIB, block_state_zero=False),
    "fixed": NewVhdx(size=SIZE, block_size=2 * MIB, fixed=True),
}


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("kind", IMAGES)
def test_every_reader_sees_what_was_written(tmp_path: Path, kind: str, resize: bool) -> None:
    path = tmp_path / "disk.vhdx"
    model = asyncio.run(make(path, IMAGES[kind], 1, resize=resize))
    expected = model.sha256()
    subprocess.run(["qemu-img", "check", "-q", path], check=True, timeout=60)
    assert qemu_sha256(path, tmp_path) == expected
    assert seven_zip_sha256(path, tmp_path) == expected
    with vhdi(path) as read:
        assert sha256_through(read, model.size) == expected
    with dissect(path) as read:
        assert sha256_through(read, model.size) == expected


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_large_sectors_are_read_as_written(tmp_path: Path, fixed: bool, resize: bool) -> None:
    path = tmp_path / "disk.vhdx"
    new = NewVhdx(size=SIZE, block_size=2 * MIB, logical_sector_size=4096, fixed=fixed)
    model = asyncio.run(make(path, new, 2, resize=resize))
    assert seven_zip_sha256(path, tmp_path) == model.sha256()


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("trim", [False, True])
def test_a_chain_is_read_as_written(tmp_path: Path, trim: bool, sector_size: int) -> None:
    async def chain() -> Model:
        base = NewVhdx(size=SIZE, block_size=MIB, logical_sector_size=sector_size)
        model = await make(paths[0], base, 3)
        for number in (1, 2):
            await create_child(paths[number], paths[number - 1], block_size=number * 2 * MIB)
            async with vblk.open(paths[number], read_only=False) as disk:
                await scribble(disk, model, number, trim=trim)
        return model

    paths = [tmp_path / f"{number}.vhdx" for number in range(3)]
    expected = asyncio.run(chain()).sha256()
    assert seven_zip_sha256(paths[2], tmp_path) == expected
    if not trim:  # libvhdi shows the parent where a child says "zero"
        with vhdi(*reversed(paths)) as read:
            assert sha256_through(read, SIZE) == expected


async def flush_for_a_pass(disk: vblk.Disk, model: Model, path: Path) -> None:
    """Take and lose a block until the log begins with a new entry: the first of another pass."""

    def first_entry() -> bytes:
        with path.open("rb") as file:
            file.seek(MIB + 4096)
            return file.read(4096)

    before = first_entry()
    for number in range(200):
        at = number // 2 % 40 * MIB
        if number % 2:
            await disk.write_zeroes(at, MIB, unmap=True)
            model.zero(at, MIB)
        else:
            await disk.write(at, b"x" * 512)
            model.write(at, b"x" * 512)
        await disk.flush()
        if first_entry() != before:
            return
    raise AssertionError("the log never went round")


@pytest.mark.parametrize("more", [0, 1, 2, 60, None])
@pytest.mark.parametrize("seed", range(2))
def test_qemu_replays_what_vblk_had_not_brought_home(tmp_path: Path, seed: int, more: int | None) -> None:
    """Stop in the first pass of the log (None), or after so many entries more than a later one's first."""
    path, left = tmp_path / "disk.vhdx", tmp_path / "left.vhdx"

    async def crash() -> Model:
        await create(path, NewVhdx(size=SIZE, block_size=MIB))
        model = Model(SIZE)
        async with vblk.open(path, read_only=False) as disk:
            await scribble(disk, model, seed)
            await disk.flush()
            if more is not None:
                await flush_for_a_pass(disk, model, path)
            for number in range(more or 0):
                await disk.write(number % 40 * MIB, b"last")
                model.write(number % 40 * MIB, b"last")
                await disk.flush()
            shutil.copyfile(path, left)
        return model

    model = asyncio.run(crash())
    expected = model.sha256()
    ours = tmp_path / "ours.vhdx"
    shutil.copyfile(left, ours)

    async def seen(image: Path, *, read_only: bool) -> str:
        async with vblk.open(image, read_only=read_only) as disk:
            data = await disk.read(0, disk.size)
            assert isinstance(disk.node, VhdxNode)
            assert (disk.node.image.dirty_log is not None) is (read_only and image == left)
        other = Model(SIZE)
        other.write(0, data)
        return other.sha256()

    assert asyncio.run(seen(left, read_only=True)) == expected
    assert asyncio.run(seen(ours, read_only=False)) == expected
    assert asyncio.run(seen(ours, read_only=True)) == expected
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", left], check=True, timeout=60)
    subprocess.run(["qemu-img", "check", "-q", left], check=True, timeout=60)
    assert qemu_sha256(left, tmp_path) == expected
    assert qemu_sha256(ours, tmp_path) == expected


def test_vblk_replays_what_a_killed_qemu_left(tmp_path: Path) -> None:
    """Let QEMU log a new block and fail to bring it home: what it wrote to its BAT never arrives."""
    path, whole = tmp_path / "disk.vhdx", tmp_path / "whole.vhdx"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "40M"], check=True, timeout=60
    )
    fault = {"iotype": "write", "sector": 2 * MIB // 512, "errno": 5, "event": "none"}
    file = {"driver": "file", "filename": str(path)}
    image = {"driver": "vhdx", "file": {"driver": "blkdebug", "image": file, "inject-error": [fault]}}
    killed = ["qemu-io", "-c", "write -P 7 1M 64k", "-c", "sigraise 9", "json:" + json.dumps(image)]
    assert subprocess.run(killed, check=False, capture_output=True, timeout=60).returncode == -9
    shutil.copyfile(path, whole)
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", whole], check=True, timeout=60)
    expected = qemu_sha256(whole, tmp_path)

    async def replayed() -> None:
        async with vblk.open(path) as disk:
            assert isinstance(disk.node, VhdxNode)
            assert disk.node.image.dirty_log is not None
            assert (await disk.node.check()).errors == 0
        async with vblk.open(path, read_only=False) as disk:
            model = Model(SIZE)
            model.write(0, await disk.read(0, SIZE))
            assert model.sha256() == expected

    asyncio.run(replayed())
    assert qemu_sha256(path, tmp_path) == expected


def test_vblk_and_qemu_write_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"

    async def turn(model: Model, seed: int) -> None:
        async with vblk.open(path, read_only=False) as disk:
            await scribble(disk, model, seed)

    asyncio.run(create(path, IMAGES["dynamic"]))
    model = Model(SIZE)
    for number in range(4):
        asyncio.run(turn(model, number))
        offset = number * 7 * MIB + 512 * 3
        subprocess.run(
            ["qemu-io", "-f", "vhdx", "-c", f"write -q -P {number + 1} {offset} 3M", path],
            check=True,
            timeout=60,
        )
        model.write(offset, bytes([number + 1]) * (3 * MIB))
    assert qemu_sha256(path, tmp_path) == model.sha256()
    assert seven_zip_sha256(path, tmp_path) == model.sha256()
