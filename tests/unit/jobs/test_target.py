"""New image files: whole or not there, and never over somebody's open image."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from tests.support.cancellation import sweep
from tests.support.nodes import loop_device
from vblk.drivers.raw_create import NewRawImage
from vblk.errors import PermissionConflict, StorageError
from vblk.graph.creation import FileOptions
from vblk.graph.node import Preallocation
from vblk.graph.registry import Graph
from vblk.jobs.target import new_image
from vblk.opening import open_image
from vblk.units import KIB, MIB


def make(path: Path | str, image: NewRawImage, data: bytes = b"", fail: bool = False) -> None:
    async def scenario() -> None:
        async with Graph() as graph, new_image(graph, str(path), image) as made:
            if data:
                await made.handle.write(0, data)
            if fail:
                raise RuntimeError("on the way")

    asyncio.run(scenario())


def test_a_new_file_has_its_size_in_whole_sectors_and_its_first_block(tmp_path: Path) -> None:
    make(tmp_path / "a", NewRawImage(MIB + 1))
    assert (tmp_path / "a").stat().st_size == MIB + 512
    assert 0 < (tmp_path / "a").stat().st_blocks * 512 <= 64 * KIB
    make(tmp_path / "b", NewRawImage(0))
    assert (tmp_path / "b").stat().st_size == 0


@pytest.mark.parametrize("mode", [Preallocation.FALLOC, Preallocation.FULL])
def test_preallocation_takes_the_space(tmp_path: Path, mode: Preallocation) -> None:
    make(tmp_path / "a", NewRawImage(MIB, FileOptions(preallocation=mode.value)))
    assert (tmp_path / "a").stat().st_blocks * 512 >= MIB
    assert (tmp_path / "a").read_bytes() == bytes(MIB)


def test_an_existing_file_is_replaced_with_its_mode_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old" * 1000)
    path.chmod(0o600)
    before = path.stat().st_ino
    make(path, NewRawImage(512), b"new")
    assert path.read_bytes()[:3] == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino != before


def test_after_a_failure_the_old_file_stands_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        make(path, NewRawImage(512), b"new", fail=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", NewRawImage(512), b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes()[:3] == b"new"


def test_a_file_with_two_names_is_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old" * 1000)
    os.link(tmp_path / "a", tmp_path / "b")
    make(tmp_path / "a", NewRawImage(1024), b"new")
    assert (tmp_path / "b").read_bytes() == b"new" + bytes(1021)


def test_a_file_in_a_folder_that_takes_no_files_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old" * 1000)
    before = path.stat().st_ino

    def refuse(path: str, mode: int) -> bool:
        return False

    monkeypatch.setattr(os, "access", refuse)
    make(path, NewRawImage(1024), b"new")
    assert (path.read_bytes(), path.stat().st_ino) == (b"new" + bytes(1021), before)


def test_a_file_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(MIB))

    async def scenario() -> None:
        async with Graph() as graph:
            await open_image(graph, str(path), format="raw")
            async with new_image(graph, str(path), NewRawImage(512)):
                pass

    with pytest.raises(PermissionConflict):
        asyncio.run(scenario())
    assert path.stat().st_size == MIB
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["nosuch/a", ".", "new/"])
def test_a_place_where_no_file_can_be_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="Could not create"):
        make(f"{tmp_path}/{name}", NewRawImage(512))


def test_errors_call_the_file_by_the_name_that_was_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Graph() as graph, new_image(graph, str(tmp_path / "a"), NewRawImage(512)) as made:
            await made.handle.read(0, 1024)

    with pytest.raises(Exception, match="/a: ") as caught:
        asyncio.run(scenario())
    assert "vblk-part" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root attaches loop devices")
def test_a_device_is_written_in_place_and_is_not_called_zero(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"old" * MIB)

    async def scenario(device: str, size: int) -> bool:
        async with Graph() as graph, new_image(graph, device, NewRawImage(size)) as made:
            await made.handle.write(0, b"new")
            return made.is_zero

    with loop_device(tmp_path / "image") as device:
        assert not asyncio.run(scenario(device, 2 * MIB))
        with pytest.raises(StorageError, match="smaller"):
            asyncio.run(scenario(device, 4 * MIB))
    assert (tmp_path / "image").read_bytes() == b"new" + (b"old" * MIB)[3:]


def test_wherever_it_is_cancelled_either_the_old_file_stands_alone_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    async def replace() -> None:
        async with Graph() as graph, new_image(graph, str(path), NewRawImage(512)) as made:
            await made.handle.write(0, b"new")

    async def check() -> None:
        assert os.listdir(tmp_path) == ["a"]
        assert path.read_bytes() in (b"old", b"new" + bytes(509))
        path.write_bytes(b"old")

    assert asyncio.run(sweep(replace, check)) > 10
