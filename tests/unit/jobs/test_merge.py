"""What a merge makes of chains that somebody touched before it came to its end."""

import asyncio
from pathlib import Path

import pytest

from tests.support.crash import Seen
from tests.support.crash_chain import RecordedImages, files_of, images_on, see_chain, seen_of
from tests.support.vhdx.chain import Chain
from vblk.drivers.vhdx_links import keep_identity, set_locator
from vblk.errors import NodeBusy, StorageError
from vblk.formats.vhdx.linkage import Absorbed, MergeNote, merge_note, reparented
from vblk.jobs.chain import vhdx_of
from vblk.jobs.merge import Merge
from vblk.testing import Content

KIB, MIB = 1 << 10, 1 << 20


def chain_in(folder: Path) -> tuple[dict[str, Content], Seen]:
    chain = Chain(folder)
    chain.base([(0, 64 * KIB)], size=4 * MIB)
    chain.child([(8 * KIB, 8 * KIB)])
    chain.child([(2 * MIB, 4 * KIB)])
    return {level.path.stem: Content.load(level.path) for level in chain.levels}, seen_of(chain.top.model)


async def merge(images: RecordedImages, into: str = "base") -> Merge:
    job = Merge(images, "child2", into)
    await job.run(await job.plan())
    return job


async def merge_until_deleting(images: RecordedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge, and be killed before anything is deleted."""

    async def killed(*_: object) -> None:
        raise StorageError(5, "killed")

    with monkeypatch.context() as patch:
        patch.setattr(RecordedImages, "remove", killed)
        with pytest.raises(StorageError):
            await merge(images)


def test_what_is_written_to_a_top_that_was_only_to_be_deleted_is_merged_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, disk = chain_in(tmp_path)

    async def main() -> None:
        images = images_on(files)
        await merge_until_deleting(images, monkeypatch)
        assert images.present == {"base", "child1", "child2"}
        assert await images.chain("child2") == ["child2", "base"]
        async with images.opened("child2", read_only=False, backing=True) as handle:
            await handle.write(3 * MIB, b"!" * 4096)
        await merge(images)
        assert images.present == {"base"}
        expected = Seen(disk.size, {**disk.pages, 3 * MIB // 4096: b"!" * 4096})
        assert await see_chain(images_on(files_of(images)), "base", clean=True) == expected

    asyncio.run(main())


def test_a_note_makes_nobody_delete_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, disk = chain_in(tmp_path)

    async def main() -> None:
        images = images_on(files)
        base = (await images.load("base")).data_write_guid
        async with images.opened("child2", read_only=False) as handle:
            node = vhdx_of(handle)
            own = keep_identity(node)
            assert node.image.locator is not None
            assert node.image.locator.linkage is not None
            note = MergeNote(own, (Absorbed(".\\base", base), Absorbed("..\\none", base)))
            await set_locator(node, reparented(node.image.locator.linkage, ".\\child1", note=note))
        assert (await merge(images, "child1")).left == ["base"]
        assert images.present == {"base", "child1"}

    asyncio.run(main())
    assert disk.size


def test_an_image_that_changes_while_it_is_merged_stays(tmp_path: Path) -> None:
    files, _ = chain_in(tmp_path)

    async def main() -> None:
        images = images_on(files)
        job = Merge(images, "child2", "base")
        plan = await job.plan()
        async with images.opened("child1", read_only=False, backing=True) as handle:
            await handle.write(0, b"!" * 512)
        with pytest.raises(NodeBusy):
            await job.run(plan)
        assert images.present == {"base", "child1", "child2"}
        async with images.opened("child2") as handle:
            assert merge_note((vhdx_of(handle).image.locator or pytest.fail("no locator")).pairs) is None

    asyncio.run(main())
