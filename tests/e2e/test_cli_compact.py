"""`vblk compact`: what it wins on a real file system, what it says, and what kills it survives."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

import vblk
from tests.support.command_line import call, good, start
from tests.support.crash import NIGHTLY, SEED
from tests.support.half_empty_ext4 import FileSystem, half_empty_ext4
from tests.support.killed_call import Killer
from tests.support.readers import dissect, qemu_sha256, seven_zip_sha256, sha256_of, sha256_through, vhdi
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.model import Model, pattern
from tests.support.worn_vhdx import Worn, worn

MIB = 1 << 20
KILLS = 50 if NIGHTLY else 5


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> FileSystem:
    """Return a file system of 96 MiB of which half was filled, and half of that deleted."""
    return half_empty_ext4(tmp_path_factory.mktemp("ext4"), size=96 * MIB, files=24, file_size=2 * MIB)


def vhdx_of(ext4: FileSystem, folder: Path, *, block_size: int, discard: bool) -> tuple[Path, Path]:
    """Return a VHDX with the file system, and the raw disk it holds when its free space was given up."""
    path, truth = folder / "disk.vhdx", folder / "disk.raw"
    options = f"block_size={block_size}"
    good("convert", "-S", "0", "-f", "raw", "-O", "vhdx", "-o", options, ext4.path, path)

    async def give_up() -> None:
        async with vblk.open(path, read_only=False) as disk:
            for offset, length in ext4.free:
                if discard:
                    await disk.discard(offset, length)
                else:
                    await disk.write(offset, bytes(length))

    asyncio.run(give_up())
    good("convert", "-f", "vhdx", "-O", "raw", path, truth)
    return path, truth


@pytest.mark.parametrize("discard", [True, False], ids=["discarded", "zeroed"])
@pytest.mark.parametrize("block_size", [MIB, 8 * MIB])
def test_a_half_emptied_file_system_takes_what_is_live(
    ext4: FileSystem, tmp_path: Path, block_size: int, discard: bool
) -> None:
    path, truth = vhdx_of(ext4, tmp_path, block_size=block_size, discard=discard)
    before = path.stat().st_size
    report = json.loads(good("compact", "--output", "json", path))
    after = path.stat().st_size
    assert (report["length-before"], report["length-after"]) == (before, after)
    structures = 4 * MIB
    assert after <= structures + ext4.blocks_in_use(block_size) * block_size
    if block_size == MIB:
        assert after <= structures + ext4.live_bytes * 1.1 + block_size
    assert good("compare", path, truth) == "Images are identical.\n"
    assert "No errors were found" in good("check", path)
    assert qemu_sha256(path, tmp_path) == sha256_of(truth)


def put(image: Worn, folder: Path) -> Path:
    """Write the files of an image and return the path of the last."""
    path = folder
    for name, content in zip(["base.vhdx", "disk.vhdx"][-len(image.files) :], image.contents(), strict=True):
        path = folder / name
        path.write_bytes(content)
    return path


async def read_all(path: Path) -> tuple[bytes, str]:
    """Return what a disk holds, and its data write GUID."""
    async with vblk.open(path) as disk:
        info = disk.node.info()
        return await disk.read(0, disk.size), str(info["data-write-guid"])


@pytest.mark.parametrize("parent", [False, True], ids=["alone", "child"])
def test_a_killed_compaction_loses_nothing_and_goes_on(tmp_path: Path, parent: bool) -> None:
    lot = Random(SEED)
    image = worn(Random(17), size=20 * MIB, block_size=2 * MIB, parent=parent)
    path = put(image, tmp_path)
    whole = path.read_bytes()
    disk, guid = asyncio.run(read_all(path))
    assert disk == image.model.read(0, image.model.size)
    with Killer() as killer:
        status, calls = killer.call(["compact", path])
        assert status == 0
        length = path.stat().st_size
        assert length < len(whole)
        path.write_bytes(whole)
        for number in range(KILLS):
            if number % 8 == 0:
                path.write_bytes(whole)
            status, _ = killer.call(["compact", path], after=lot.randrange(1, calls))
            assert status in (-9, 0)
            assert asyncio.run(read_all(path)) == (disk, guid)
            outcome = call("check", "-q", path)
            assert outcome.status == 0, outcome.err
        assert killer.call(["compact", path])[0] == 0
    assert path.stat().st_size == length
    assert asyncio.run(read_all(path)) == (disk, guid)
    assert call("check", "-q", path).err == ""


@pytest.mark.parametrize("seed", range(3))
def test_every_reader_sees_the_same_disk(tmp_path: Path, seed: int) -> None:
    image = worn(Random(seed), block_size=MIB << seed)
    path = put(image, tmp_path)
    good("compact", "-q", path)
    expected = image.model.sha256()
    good("check", "-q", path)
    assert qemu_sha256(path, tmp_path) == expected
    assert seven_zip_sha256(path, tmp_path) == expected
    with vhdi(path) as read:
        assert sha256_through(read, image.model.size) == expected
    with dissect(path) as read:
        assert sha256_through(read, image.model.size) == expected


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_compacted_child_is_read_by_others(tmp_path: Path, sector_size: int) -> None:
    image = worn(Random(5), block_size=2 * MIB, sector_size=sector_size, parent=True)
    path = put(image, tmp_path)
    good("compact", "-q", path)
    assert seven_zip_sha256(path, tmp_path) == image.model.sha256()


def test_a_dry_run_says_what_comes_true_and_changes_nothing(tmp_path: Path) -> None:
    path = put(worn(Random(3), parent=True), tmp_path)
    before = path.read_bytes()
    told = good("compact", "--dry-run", path)
    record = json.loads(good("compact", "-n", "--output", "json", path))
    assert path.read_bytes() == before
    done = good("compact", path)
    assert told.replace("would be ", "").splitlines()[:-1] == done.splitlines()[:-1]
    assert told.splitlines()[-1].startswith("disk size: ")
    assert record["dry-run"] is True
    assert record["length-after"] == path.stat().st_size < record["length-before"] == len(before)
    again = json.loads(good("compact", "--output", "json", path))
    assert (again["zero-blocks"], again["moved-bytes"]) == (0, 0)
    assert again["length-after"] == again["length-before"]


def test_progress_is_told(tmp_path: Path) -> None:
    path = put(worn(Random(3)), tmp_path)
    assert good("compact", "-n", "-q", "-p", path) == ""
    assert good("compact", "-p", "-n", path).startswith("    (0.00/100%)\r")
    outcome = call("compact", "--progress", "json", "-q", path)
    assert (outcome.status, outcome.out) == (0, "")
    outcome = call("compact", "--progress", "json", path)
    lines = [json.loads(line) for line in outcome.err.splitlines()]
    assert lines[-1]["finished"] is True
    assert lines[-1]["offset"] == lines[-1]["length"] > 0


def test_children_of_a_compacted_parent_still_open(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    base = chain.base([(0, MIB), (9 * MIB, MIB)])
    for number in (1, 2, 3):
        base.vhdx.blocks[number] = Block(State.FULLY_PRESENT)
    base.vhdx.build(base.path)
    chain.child([(MIB, 4096)])
    good("compact", "-q", base.path)
    assert base.path.stat().st_size == 6 * MIB
    disk, _ = asyncio.run(read_all(chain.top.path))
    assert disk == chain.top.model.read(0, chain.top.model.size)


def test_a_log_that_was_not_written_back_is_replayed_first(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    good("create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "20M")
    model = Model(20 * MIB)
    dirty = b""

    async def crash() -> bytes:
        async with vblk.open(path, read_only=False) as disk:
            for number in range(10):
                await disk.write(number * MIB, pattern(1, number * MIB, 4096))
                model.write(number * MIB, pattern(1, number * MIB, 4096))
            await disk.write_zeroes(0, 5 * MIB, unmap=True)
            model.zero(0, 5 * MIB)
            await disk.flush()
            return path.read_bytes()

    dirty = asyncio.run(crash())
    path.write_bytes(dirty)
    told = json.loads(good("compact", "-n", "--output", "json", path))
    assert path.read_bytes() == dirty
    done = json.loads(good("compact", "--output", "json", path))
    assert told["length-after"] == done["length-after"] == 9 * MIB
    assert qemu_sha256(path, tmp_path) == model.sha256()


def test_what_cannot_be_compacted_says_so(tmp_path: Path) -> None:
    raw, fixed, broken = (tmp_path / name for name in ("a.raw", "fixed.vhdx", "broken.vhdx"))
    raw.write_bytes(bytes(MIB))
    Vhdx(size=4 * MIB, fixed=True, blocks={n: Block(State.FULLY_PRESENT) for n in range(4)}).build(fixed)
    blocks = {n: Block(State.FULLY_PRESENT, file_offset=4 * MIB) for n in range(2)}
    Vhdx(size=4 * MIB, blocks=blocks).build(broken)
    for path, sentence in (
        (raw, "only VHDX images can be compacted, not raw"),
        (fixed, "the image is fixed: its blocks keep their space"),
        (broken, "must not be written"),
        (tmp_path / "absent", "No such file or directory"),
    ):
        before = path.read_bytes() if path.exists() else None
        for words in ([], ["-n"]):
            outcome = call("compact", *words, path)
            assert (outcome.status, outcome.out) == (1, "")
            assert sentence in outcome.err.splitlines()[-1]
        assert before == (path.read_bytes() if path.exists() else None)


def test_an_image_in_use_is_left_alone(tmp_path: Path) -> None:
    path = put(worn(Random(3)), tmp_path)

    async def use() -> None:
        async with vblk.open(path, read_only=False):
            process = start("compact", path)
            _, told = await asyncio.to_thread(process.communicate)
            assert process.returncode == 1
            assert "lock" in told

    asyncio.run(use())
