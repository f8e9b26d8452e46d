"""Bitmaps that a qcow2 image keeps: there again after it was closed, and never trusted after a crash."""

import asyncio
import errno
import random
import shutil
from pathlib import Path

import pytest

from tests.support.command_line import call, good
from vblk.drivers.qcow2 import Qcow2Node
from vblk.errors import CorruptImage, GraphError
from vblk.formats.qcow2.layout import BITMAPS
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.handle import Handle
from vblk.graph.recording import add_bitmap, remove_bitmap, require_changeable
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.units import KIB, MIB

SIZE = 40 * MIB + 512


def image(folder: Path, options: str = "cluster_size=4096") -> Path:
    path = folder / "disk.qcow2"
    good("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    return path


async def opened(graph: Graph, path: Path, *, read_only: bool = False) -> tuple[Handle, Qcow2Node]:
    handle = await open_image(graph, str(path), format="qcow2", read_only=read_only)
    assert isinstance(handle.node, Qcow2Node)
    return handle, handle.node


def is_sound(path: Path) -> None:
    outcome = call("check", path)
    assert (outcome.status, "No errors were found" in outcome.out) == (0, True), outcome.out + outcome.err


def marks(bitmap: DirtyBitmap) -> list[tuple[int, int]]:
    return [(at, length) for at, length, dirty in bitmap.ranges(0, bitmap.size) if dirty]


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=65536", "refcount_bits=1"])
def test_marks_are_there_again_after_the_image_was_closed(tmp_path: Path, options: str) -> None:
    path = image(tmp_path, options)
    right: dict[str, list[tuple[int, int]]] = {}

    async def main(step: int) -> None:
        async with Graph() as graph:
            guest, node = await opened(graph, path)
            if not step:
                for name, granularity in (("fine", 512), ("coarse", MIB), ("full", 4 * KIB)):
                    await add_bitmap(graph, node, name, granularity=granularity, persistent=True)
                await add_bitmap(graph, node, "gone", granularity=512)
                node.bitmaps["full"].set(0, SIZE)
            assert {each.name: marks(each) for each in node.bitmaps.values() if each.persistent} == (
                right if step else {"fine": [], "coarse": [], "full": [(0, SIZE)]}
            )
            lot = random.Random(step)
            for _ in range(20):
                await guest.write(lot.randrange(SIZE - 5000), lot.randbytes(5000))
            if step == 1:
                node.bitmaps["coarse"].enabled = False
                remove_bitmap(node, "full")
            right.clear()
            right.update({each.name: marks(each) for each in node.bitmaps.values() if each.persistent})

    for step in range(3):
        asyncio.run(main(step))
        is_sound(path)
    assert set(right) == {"fine", "coarse"}


def test_bitmaps_grow_with_the_disk_and_can_all_go(tmp_path: Path) -> None:
    path = image(tmp_path)
    good("bitmap", "--add", "-g", "4k", path, "b")
    before = path.stat().st_size
    good("resize", "-q", path, "80M")
    is_sound(path)

    async def main() -> None:
        async with Graph() as graph:
            _, node = await opened(graph, path, read_only=True)
            assert node.bitmaps["b"].size == 80 * MIB
            assert marks(node.bitmaps["b"]) == [(40 * MIB, 40 * MIB)]

    asyncio.run(main())
    good("bitmap", "--remove", path, "b")
    is_sound(path)
    assert "bitmaps:" not in good("info", path)
    assert path.stat().st_size <= before + 8192


def test_after_a_crash_nobody_trusts_the_bitmaps(tmp_path: Path) -> None:
    path, dead = image(tmp_path), tmp_path / "dead.qcow2"
    good("bitmap", "--add", "-g", "64k", path, "b")

    async def crash() -> None:
        async with Graph() as graph:
            guest, node = await opened(graph, path)
            await guest.write(0, b"x" * 512)
            await guest.flush()
            await node.file.flush()
            shutil.copy(path, dead)

    async def after() -> None:
        async with Graph() as graph:
            guest, node = await opened(graph, dead)
            bitmap = node.bitmaps["b"]
            assert bitmap.info()["inconsistent"]
            with pytest.raises(GraphError, match="Bitmap 'b' is inconsistent and cannot be used"):
                bitmap.require_usable()
            with pytest.raises(GraphError, match="inconsistent"):
                await guest.resize(SIZE * 2)
            await guest.write(MIB, b"y" * 512)
            assert not bitmap.count

    asyncio.run(crash())
    assert "[0]: in-use" in good("info", dead)
    for _ in range(2):
        asyncio.run(after())
        is_sound(dead)
    assert "[0]: in-use" in good("info", dead)
    outcome = call("bitmap", "--enable", dead, "b")
    assert "Operation enable on bitmap b failed: Bitmap 'b' is inconsistent and cannot be used" in outcome.err
    good("bitmap", "--remove", dead, "b")
    assert "bitmaps:" not in good("info", dead)
    is_sound(dead)


def test_a_reopening_stores_them_and_one_for_writing_flags_them(tmp_path: Path) -> None:
    path = image(tmp_path)

    async def main() -> None:
        async with Graph() as graph:
            guest, node = await opened(graph, path)
            graph.keep(node)
            bitmap = await add_bitmap(graph, node, "b", granularity=4096, persistent=True)
            await guest.write(8192, b"x" * 4096)
            await graph.reopen(node, read_only=True)
            assert [each.in_use for each in node.directory.bitmaps] == [False]
            with pytest.raises(GraphError, match="Bitmap 'b' is readonly and cannot be modified"):
                require_changeable(node, bitmap)
            await graph.reopen(node, read_only=False)
            assert [each.in_use for each in node.directory.bitmaps] == [True]
            assert node.bitmaps["b"] is bitmap
            await guest.write(0, b"x")
            assert marks(bitmap) == [(0, 4096), (8192, 4096)]

    asyncio.run(main())
    is_sound(path)


def test_a_stranger_s_change_makes_them_nobody_s(tmp_path: Path) -> None:
    path = image(tmp_path)
    good("bitmap", "--add", path, "b")
    data = bytearray(path.read_bytes())
    data[95] &= ~BITMAPS & 0xFF  # what a program does that knows no bitmaps
    path.write_bytes(data)

    async def main() -> None:
        async with Graph() as graph:
            guest, node = await opened(graph, path)
            assert node.bitmaps == {}
            assert "its bitmaps are not used" in node.warnings[0]
            await guest.write(0, b"x")
            await add_bitmap(graph, node, "new", persistent=True)

    asyncio.run(main())
    assert "name: new" in good("info", path)
    assert "name: b\n" not in good("info", path)


@pytest.mark.parametrize(("at", "value"), [(12, 4), (16, 2), (17, 8), (17, 40), (0, 1), (8, 0xFF)])
def test_a_directory_that_cannot_be_is_refused_for_writing_and_told_for_reading(
    tmp_path: Path, at: int, value: int
) -> None:
    path = image(tmp_path)
    good("bitmap", "--add", "-g", "512", path, "b")

    async def where() -> int:
        async with Graph() as graph:
            _, node = await opened(graph, path, read_only=True)
            return node.directory.offset

    data = bytearray(path.read_bytes())
    entry = asyncio.run(where())
    data[entry + at + (3 if at == 12 else 0)] = value
    path.write_bytes(data)

    async def main() -> None:
        async with Graph() as graph:
            _, node = await opened(graph, path, read_only=True)
            assert node.bitmaps == {}
            assert node.warnings
        async with Graph() as graph:
            with pytest.raises(CorruptImage, match="doesn't satisfy the constraints"):
                await opened(graph, path)

    asyncio.run(main())
    assert path.read_bytes() == data
    assert call("check", path).status


def test_what_an_image_cannot_keep_is_refused(tmp_path: Path) -> None:
    outcome = call("bitmap", "--add", image(tmp_path, "compat=0.10"), "b")
    assert outcome.status == 1
    assert "Cannot store dirty bitmaps in qcow2 v2 files" in outcome.err


def test_bitmaps_that_find_no_room_leave_the_disk_whole(tmp_path: Path) -> None:
    path = image(tmp_path)

    async def main() -> None:
        async with Graph() as graph:
            guest, node = await opened(graph, path)
            await guest.write(0, b"x" * MIB)
            await guest.flush()
            await add_bitmap(graph, node, "b", granularity=512, persistent=True)
            node.bitmaps["b"].set(512, SIZE // 2)
            limit = path.stat().st_size

            async def full(size: int, **_: object) -> None:
                raise OSError(errno.ENOSPC, f"{size} bytes are more than {limit}")

            node.file.resize = full  # type: ignore[method-assign]

    with pytest.raises(OSError, match="more than"):
        asyncio.run(main())
    is_sound(path)
