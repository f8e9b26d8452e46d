"""`delete` of a commit: the layers' files go when the job came to its end and nobody uses them."""

import os
from pathlib import Path

import pytest

from tests.support.chain_lab import ChainLab, in_chain_lab, names_of
from tests.support.commits import CHAINS, commit, completed, each_top
from vblk.graph.edge import Permission
from vblk.graph.registry import Graph
from vblk.jobs.states import Status
from vblk.opening import open_image

two_chains = pytest.mark.parametrize("formats", [CHAINS["raw"], CHAINS["vhdx"]], ids=["qcow2", "vhdx"])


@two_chains
@each_top
def test_intermediate_images_are_deleted_with_delete(tmp_path: Path, formats: list[str], top: int) -> None:
    names = names_of(formats)

    async def scenario(room: ChainLab) -> None:
        async with room.busy():
            job = await commit(room, top, delete=True)
            await completed(room, job)
        assert job.error is None
        assert sorted(os.listdir(tmp_path)) == ([names[0], names[-1]] if top else [names[0]])
        assert len(list(room.graph.nodes())) == (4 if top else 2)

    in_chain_lab(tmp_path, formats, scenario)


@two_chains
@each_top
def test_intermediate_images_are_kept_without_delete(tmp_path: Path, formats: list[str], top: int) -> None:
    async def scenario(room: ChainLab) -> None:
        await completed(room, await commit(room, top))

    in_chain_lab(tmp_path, formats, scenario)
    assert sorted(os.listdir(tmp_path)) == names_of(formats)


@each_top
def test_nothing_is_deleted_after_a_cancel(tmp_path: Path, top: int) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, top, delete=True, speed=1)
        await room.until(job, Status.RUNNING)
        job.cancel()
        await job.ended()

    in_chain_lab(tmp_path, CHAINS["vhdx"], scenario)
    assert sorted(os.listdir(tmp_path)) == names_of(CHAINS["vhdx"])


def test_nothing_is_deleted_when_a_ready_commit_is_cancelled(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, 0, delete=True)
        await room.until(job, Status.READY)
        job.cancel()
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, CHAINS["raw"], scenario)
    assert sorted(os.listdir(tmp_path)) == names_of(CHAINS["raw"])


def test_a_layer_that_the_graph_still_uses_is_left_and_the_rest_deleted(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        layer = room.images[2]
        job = await commit(room, 1, delete=True)
        user = room.graph.hold(layer, "who looks at its name", Permission.NONE)
        await job.ended()
        assert job.error is not None
        assert "1.qcow2" in job.error
        assert room.chain() == ["3.qcow2", "0.qcow2"], "committed all the same"
        await room.graph.release(user)

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)
    assert sorted(os.listdir(tmp_path)) == ["0.qcow2", "1.qcow2", "3.qcow2"]


def test_a_layer_that_another_process_uses_is_left(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        async with Graph() as others:
            await open_image(others, str(tmp_path / "1.qcow2"), format="qcow2", backing=False)
            job = await commit(room, 1, delete=True)
            await job.ended()
            assert job.error is not None
            assert "Is another process using the image" in job.error

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)
    assert sorted(os.listdir(tmp_path)) == ["0.qcow2", "1.qcow2", "3.qcow2"]


def test_a_file_that_is_gone_already_is_no_failure(tmp_path: Path) -> None:
    async def scenario(room: ChainLab) -> None:
        job = await commit(room, 1, delete=True)
        (tmp_path / "1.qcow2").unlink()
        await job.ended()
        assert job.error is None

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)
    with pytest.raises(FileNotFoundError):
        (tmp_path / "2.qcow2").stat()


def test_a_folder_that_forbids_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    async def scenario(room: ChainLab) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("vblk.jobs.image_removal.os.unlink", refuse)
            job = await commit(room, 1, delete=True)
            await job.ended()
        assert job.error is not None
        assert "Permission denied" in job.error

    in_chain_lab(tmp_path, CHAINS["qcow2"], scenario)
