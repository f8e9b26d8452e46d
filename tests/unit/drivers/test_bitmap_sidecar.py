"""Bitmaps beside raw and VHDX images: kept from one opening to the next, and never believed wrongly."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import call, good
from tests.support.qmp import OURS, Talk
from vblk.drivers.bitmaps_beside import sidecar_path
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.handle import Handle
from vblk.graph.recording import add_bitmap, remove_bitmap
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.units import KIB, MIB

SIZE = 8 * MIB
FORMATS = ("raw", "vhdx")
each_format = pytest.mark.parametrize("form", FORMATS)


def image(folder: Path, form: str) -> Path:
    path = folder / f"disk.{form}"
    good("create", "-q", "-f", form, path, str(SIZE))
    return path


def beside(path: Path) -> Path:
    return Path(sidecar_path(str(path)))


async def opened(graph: Graph, path: Path, *, read_only: bool = False, **how: Any) -> Handle:
    return await open_image(graph, str(path), format=path.suffix[1:], read_only=read_only, **how)


async def keep(path: Path, *, granularity: int = 64 * KIB) -> None:
    """Let an image have a bitmap "b" in which two places are marked."""
    async with Graph() as graph:
        guest = await opened(graph, path)
        await add_bitmap(graph, guest.node, "b", granularity=granularity, persistent=True)
        await guest.write(MIB, b"x" * 512)
        await guest.write(5 * MIB, b"x" * 128 * KIB)


async def found(path: Path) -> DirtyBitmap:
    async with Graph() as graph:
        return (await opened(graph, path, read_only=True, force_share=True)).node.bitmaps["b"]


def marked(bitmap: DirtyBitmap) -> list[tuple[int, int]]:
    return [(offset, length) for offset, length, dirty in bitmap.ranges(0, SIZE) if dirty]


@each_format
def test_marks_are_kept_from_one_opening_to_the_next(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)

    async def main() -> None:
        await keep(path)
        bitmap = await found(path)
        assert (bitmap.persistent, bitmap.enabled, bitmap.inconsistent) == (True, True, False)
        assert marked(bitmap) == [(MIB, 64 * KIB), (5 * MIB, 128 * KIB)]
        async with Graph() as graph:
            guest = await opened(graph, path)
            await guest.write(2 * MIB, b"y")
        assert marked(await found(path)) == [(MIB, 64 * KIB), (2 * MIB, 64 * KIB), (5 * MIB, 128 * KIB)]

    asyncio.run(main())
    assert '"name": "b"' in good("info", "--output=json", "-f", form, path)


@each_format
def test_nobody_believes_them_while_the_image_is_open_for_writing(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)

    async def main() -> None:
        await keep(path)
        async with Graph() as graph:
            await opened(graph, path)
            async with Graph() as other:
                reader = await opened(other, path, read_only=True, force_share=True)
                assert reader.node.bitmaps["b"].inconsistent
                assert not reader.node.bitmaps["b"].enabled
        assert not (await found(path)).inconsistent

    asyncio.run(main())


@each_format
def test_what_a_killed_daemon_left_is_inconsistent(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)
    asyncio.run(keep(path))
    with Talk(OURS, folder=tmp_path) as talk:
        talk.call("qmp_capabilities")
        file = {"driver": "file", "filename": str(path)}
        talk.call("blockdev-add", driver=form, node_name="disk", file=file)
    outcome = call("bitmap", "--clear", "-f", form, path, "b")
    assert outcome.status == 1
    assert "Bitmap 'b' is inconsistent and cannot be used" in outcome.err
    good("bitmap", "--remove", "-f", form, path, "b")
    assert not beside(path).exists()


def change_raw(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"changed")


def change_vhdx(path: Path) -> None:
    subprocess.run(["qemu-io", "-f", "vhdx", "-c", "write 0 512", str(path)], check=True, timeout=60)


def take_the_place(path: Path) -> None:
    other = image(path.parent / "other", path.suffix[1:])
    shutil.move(other, path)


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("raw", change_raw),
        pytest.param("vhdx", change_vhdx, marks=pytest.mark.interop),
        ("raw", take_the_place),
        ("vhdx", take_the_place),
    ],
)
def test_bitmaps_of_another_disk_or_of_one_that_changed_are_not_believed(
    tmp_path: Path, form: str, change: Any
) -> None:
    (tmp_path / "other").mkdir()
    path = image(tmp_path, form)
    asyncio.run(keep(path))
    change(path)

    async def main() -> None:
        async with Graph() as graph:
            node = (await opened(graph, path)).node
            assert node.bitmaps["b"].inconsistent
            assert node.warnings == [
                "the disk was changed by a program without bitmaps: they are inconsistent"
            ]
        assert (await found(path)).inconsistent, "it is inconsistent until it is removed"

    asyncio.run(main())


@each_format
def test_the_file_goes_with_the_last_bitmap(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)

    async def main() -> None:
        await keep(path)
        assert beside(path).exists()
        async with Graph() as graph:
            remove_bitmap((await opened(graph, path)).node, "b")
        assert not beside(path).exists()

    asyncio.run(main())


@each_format
def test_a_new_image_in_the_place_of_an_old_one_has_no_bitmaps(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)
    asyncio.run(keep(path))
    image(tmp_path, form)
    assert not beside(path).exists()


@each_format
def test_a_file_that_is_none_is_left_alone(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)
    beside(path).write_bytes(b"something\nelse")

    async def main() -> None:
        async with Graph() as graph:
            guest = await opened(graph, path)
            assert guest.node.bitmaps == {}
            assert "are not used: its first line is not what it should be" in guest.node.warnings[0]
            await guest.write(0, b"x")

    asyncio.run(main())
    outcome = call("bitmap", "--add", "-f", form, path, "b")
    assert outcome.status == 1
    assert "is in the way" in outcome.err
    assert beside(path).read_bytes() == b"something\nelse"


def test_bitmaps_of_an_image_are_not_those_of_its_file_as_a_raw_disk(tmp_path: Path) -> None:
    path = image(tmp_path, "vhdx")
    asyncio.run(keep(path))
    kept = beside(path).read_bytes()

    async def main() -> None:
        async with Graph() as graph:
            node = (await open_image(graph, str(path), format="raw", read_only=False)).node
            assert (node.bitmaps, node.warnings) == ({}, [])

    asyncio.run(main())
    assert beside(path).read_bytes() == kept


@pytest.mark.parametrize("options", ["offset=512", "size=1M"])
def test_a_window_of_a_file_keeps_none(tmp_path: Path, options: str) -> None:
    path = image(tmp_path, "raw")
    name = f"driver=raw,{options},file.filename={path}"
    outcome = call("bitmap", "--add", "--image-opts", name, "b")
    assert outcome.status == 1
    assert "Can't store persistent bitmaps to" in outcome.err


@each_format
def test_the_verb_changes_bitmaps_of_all_formats_alike(tmp_path: Path, form: str) -> None:
    path, other = image(tmp_path, form), image(tmp_path, "qcow2")
    asyncio.run(keep(other))
    good("bitmap", "--add", "--disable", "-g", "4096", "-f", form, path, "one")
    good("bitmap", "--merge", "b", "-b", other, "-F", "qcow2", "--enable", "-f", form, path, "one")
    good("bitmap", "--add", "-f", form, path, "two")

    async def marks() -> list[tuple[int, int]]:
        async with Graph() as graph:
            return marked((await opened(graph, path, read_only=True)).node.bitmaps["one"])

    assert asyncio.run(marks()) == [(MIB, 64 * KIB), (5 * MIB, 128 * KIB)]
    good("bitmap", "--clear", "-f", form, path, "one")
    assert asyncio.run(marks()) == []


@pytest.mark.interop
@each_format
def test_a_daemon_keeps_and_exports_them(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)
    asyncio.run(keep(path))
    socket = tmp_path / "n.sock"
    node = {"driver": form, "node-name": "disk", "file": {"driver": "file", "filename": str(path)}}
    with Talk(OURS, folder=tmp_path) as talk:
        talk.call("qmp_capabilities")
        talk.call("blockdev-add", **node)
        talk.call("block-dirty-bitmap-add", node="disk", name="new", persistent=True)
        talk.call("blockdev-reopen", options=[node | {"read-only": True}])
        assert not asyncio.run(found(path)).inconsistent
        talk.call("blockdev-reopen", options=[node])
        assert beside(path).read_bytes().count(b'"in_use":true') == 2
        talk.call("nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
        talk.call("block-dirty-bitmap-disable", node="disk", name="b")
        talk.call("block-export-add", type="nbd", id="e", node_name="disk", name="", bitmaps=["b"])
        options = (
            f"driver=nbd,export=,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:b"
        )
        shown = subprocess.run(
            ["qemu-img", "map", "--output=json", "--image-opts", options],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        assert shown.count('"data": false') == 2
        talk.call("quit")
        talk.process.wait(60)
    bitmap = asyncio.run(found(path))
    assert (bitmap.enabled, bitmap.inconsistent) == (False, False)
    assert os.stat(beside(path)).st_mode & 0o777 == os.stat(path).st_mode & 0o777
