"""qcow2 both ways: what QEMU makes we read, what we make QEMU and dissect read, and all agree about it."""

import asyncio
import random
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from dissect.hypervisor.disk.qcow2 import QCow2  # pyright: ignore[reportMissingTypeStubs]

import vblk
from tests.support.command_line import call, good
from vblk.drivers.qcow2 import Qcow2Node
from vblk.errors import BlockError
from vblk.formats.qcow2.planner import Answer
from vblk.formats.qcow2.writing import ClusterWriter

KIB, MIB = 1 << 10, 1 << 20
SIZE = 6 * MIB
OPTIONS = ("", "compat=0.10", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64")


def qemu(*arguments: str | Path) -> str:
    ran = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def content(seed: int, size: int = SIZE) -> bytes:
    """Return bytes with random, repeated and zero stretches."""
    dice = random.Random(seed)
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        parts += [dice.randbytes(dice.randrange(90_000)), bytes(dice.randrange(200_000)), b"text" * 30_000]
    return b"".join(parts)[:size]


def options(text: str) -> list[str]:
    return ["-o", text] if text else []


def read_all(path: Path) -> bytes:
    async def main() -> bytes:
        async with vblk.open(path) as disk:
            return await disk.read(0, disk.size)

    return asyncio.run(main())


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("size", ["1000", "1M", "100M"])
def test_a_new_image_is_the_one_that_qemu_makes_to_the_byte(tmp_path: Path, option: str, size: str) -> None:
    ours, theirs = tmp_path / "a" / "disk", tmp_path / "b" / "disk"
    for path, make in ((ours, good), (theirs, qemu)):
        path.parent.mkdir()
        make("create", "-f", "qcow2", "-q", *options(option), path, size)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("option", OPTIONS)
def test_what_qemu_wrote_is_read_and_told_as_qemu_does(tmp_path: Path, option: str) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(content(1))
    qemu("convert", "-f", "raw", "-O", "qcow2", *options(option), raw, image)
    assert read_all(image) == raw.read_bytes()
    for verb in ("info", "check", "map"):
        for form in ("human", "json"):
            assert good(verb, "--output", form, image) == qemu(verb, "--output", form, image)


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_compressed_clusters_are_read_and_written_over(tmp_path: Path, method: str) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.qcow2"
    model = bytearray(content(2))
    raw.write_bytes(model)
    qemu("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={method}", raw, image)
    assert read_all(image) == model
    assert good("map", "--output", "json", image) == qemu("map", "--output", "json", image)

    async def main() -> None:
        async with vblk.open(image, read_only=False) as disk:
            for offset in range(10_000, SIZE - 5000, 300_000):
                await disk.write(offset, b"new" * 1000)
                model[offset : offset + 3000] = b"new" * 1000
            await disk.write_zeroes(MIB, 200_000, unmap=True)
            model[MIB : MIB + 200_000] = bytes(200_000)

    asyncio.run(main())
    raw.write_bytes(model)
    qemu("check", image)
    qemu("compare", "-f", "raw", "-F", "qcow2", raw, image)


@pytest.mark.parametrize(
    "option",
    [*OPTIONS, "compression_type=zstd"],
)
def test_what_we_compress_is_read_by_qemu(tmp_path: Path, option: str) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(content(4) + b"text " * 300_000 + b"-" * 36)
    words = ("convert", "-c", "-f", "raw", "-O", "qcow2", *options(option))
    told = good(*words, "--verify", raw, image)
    assert told.startswith("verified ")
    qemu("check", image)
    qemu("compare", "-f", "raw", "-F", "qcow2", raw, image)
    assert good("check", image) == qemu("check", image)
    assert " 0.00% compressed" not in qemu("check", image)
    if "refcount_bits=1" not in option:
        theirs = tmp_path / "theirs.qcow2"
        qemu(*words, raw, theirs)
        assert image.stat().st_blocks <= theirs.stat().st_blocks * 1.2
    small = tmp_path / "again.qcow2"
    good("create", "-q", "-f", "qcow2", *options(option), small, str(raw.stat().st_size))
    good("convert", "-c", "-n", "-f", "raw", "-O", "qcow2", raw, small)
    qemu("check", small)
    qemu("compare", "-f", "raw", "-F", "qcow2", raw, small)


@pytest.mark.parametrize("form", ["raw", "vhdx"])
def test_what_cannot_be_compressed_is_refused_as_by_qemu(tmp_path: Path, form: str) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(MIB))
    for words in (["-O", form, "new"], ["-n", "-O", form, "there"]):
        good("create", "-q", "-f", form, tmp_path / "there", str(MIB))
        outcome = call("convert", "-c", "-f", "raw", *words[:-1], raw, tmp_path / words[-1])
        assert outcome.status == 1
        assert "Compression not supported for this file format" in outcome.err
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", OPTIONS)
def test_what_we_wrote_is_read_by_qemu_and_dissect(tmp_path: Path, option: str) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(content(3))
    good("convert", "-f", "raw", "-O", "qcow2", *options(option), raw, image)
    qemu("check", image)
    qemu("compare", "-f", "raw", "-F", "qcow2", raw, image)
    assert good("check", image) == qemu("check", image)
    with image.open("rb") as file:
        disk = cast("Any", QCow2)(file)
        stream = disk.open() if hasattr(disk, "open") else disk
        assert stream.read(SIZE) == raw.read_bytes()


def test_an_image_with_snapshots_is_written_beside_them(tmp_path: Path) -> None:
    raw, image, other = tmp_path / "raw", tmp_path / "disk.qcow2", tmp_path / "snapshot.raw"
    first = content(4)
    raw.write_bytes(first)
    qemu("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", raw, image)
    qemu("snapshot", "-c", "before", image)
    now = bytearray(first)

    async def main() -> None:
        dice = random.Random(4)
        async with vblk.open(image, read_only=False) as disk:
            for _ in range(60):
                offset, data = dice.randrange(SIZE - 9000), dice.randbytes(dice.randrange(1, 9000))
                await disk.write(offset, data)
                now[offset : offset + len(data)] = data
            await disk.discard(MIB, MIB)
            now[MIB : 2 * MIB] = bytes(MIB)

    asyncio.run(main())
    qemu("check", image)
    raw.write_bytes(now)
    qemu("compare", "-f", "raw", "-F", "qcow2", raw, image)
    qemu("convert", "-l", "before", "-O", "raw", image, other)
    assert other.read_bytes() == first
    assert "before" in good("info", image)
    assert good("info", image) == qemu("info", image)


def test_a_chain_is_read_written_and_resized(tmp_path: Path) -> None:
    base, middle, top = tmp_path / "base", tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    model = bytearray(content(5))
    base.write_bytes(model)
    qemu("create", "-f", "qcow2", "-q", "-b", "base", "-F", "raw", middle)
    good("create", "-f", "qcow2", "-q", "-b", "middle.qcow2", "-F", "qcow2", top, str(SIZE + MIB))
    model += bytes(MIB)

    async def main() -> None:
        async with vblk.open(top, read_only=False) as disk:
            assert [node.driver for node in disk.chain()] == ["qcow2", "qcow2", "raw"]
            await disk.write(70_000, b"x" * 1000)
            await disk.write(SIZE - 100, b"y" * 200)
            await disk.resize(SIZE // 2)
            await disk.resize(SIZE + 2 * MIB)

    asyncio.run(main())
    model[70_000:71_000] = b"x" * 1000
    model[SIZE // 2 :] = bytes(SIZE // 2 + 2 * MIB)
    raw = tmp_path / "raw"
    raw.write_bytes(model)
    qemu("check", top)
    qemu("compare", "-f", "raw", "-F", "qcow2", raw, top)
    assert good("map", top) == qemu("map", top)
    assert good("info", "--backing-chain", top) == qemu("info", "--backing-chain", top)


def test_a_loop_of_backing_files_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.qcow2", tmp_path / "two.qcow2"
    qemu("create", "-f", "qcow2", "-q", "-u", "-b", two.name, "-F", "qcow2", one, "1M")
    qemu("create", "-f", "qcow2", "-q", "-u", "-b", one.name, "-F", "qcow2", two, "1M")
    with pytest.raises(BlockError, match="its own ancestor"):
        read_all(one)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "json:{}", "nbd://localhost/", "missing"])
def test_a_backing_file_outside_or_missing_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(bytes(MIB))
    image = folder / "disk.qcow2"
    qemu("create", "-f", "qcow2", "-q", "-u", "-b", name, "-F", "raw", image, "1M")
    with pytest.raises(BlockError, match=r"images may only name files|lies outside|Could not open"):
        read_all(image)


def test_an_image_that_is_dirty_or_corrupt_is_read_and_not_written(tmp_path: Path) -> None:
    for bit, words in ((1, "not closed properly"), (2, "cannot be opened read/write")):
        image = tmp_path / f"{bit}.qcow2"
        qemu("create", "-f", "qcow2", "-q", image, "1M")
        data = bytearray(image.read_bytes())
        data[79] = bit
        image.write_bytes(data)
        assert read_all(image) == bytes(MIB)

        async def write(path: Path = image) -> None:
            async with vblk.open(path, read_only=False):
                pass

        with pytest.raises(BlockError, match=words):
            asyncio.run(write())
        assert image.read_bytes() == data


def test_features_that_only_others_keep_are_cleared_by_the_first_write(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu("create", "-f", "qcow2", "-q", image, "1M")
    qemu("bitmap", "--add", image, "changes")
    data = bytearray(image.read_bytes())
    data[95] |= 1 << 5  # beside the bitmaps, which are known
    image.write_bytes(data)

    async def write() -> None:
        async with vblk.open(image, read_only=False) as disk:
            assert isinstance(disk.node, Qcow2Node)
            await disk.write(0, b"data")
            assert disk.node.image.header.autoclear == 1

    asyncio.run(write())
    assert good("check", image) == qemu("check", image)
    assert "name: changes" in qemu("info", image)


@pytest.mark.parametrize("words", [["-b", ""], ["-b", "other.raw", "-F", "raw"]])
def test_another_backing_file_by_name_is_written_as_qemu_writes_it(tmp_path: Path, words: list[str]) -> None:
    for folder, command in ((tmp_path / "ours", good), (tmp_path / "theirs", qemu)):
        folder.mkdir()
        qemu("create", "-f", "qcow2", "-q", "-u", "-b", "base.raw", "-F", "raw", folder / "disk.qcow2", "1M")
        command("rebase", "-u", *words, folder / "disk.qcow2")
    assert (tmp_path / "ours/disk.qcow2").read_bytes() == (tmp_path / "theirs/disk.qcow2").read_bytes()


def test_a_rebase_that_is_not_done_says_so_and_changes_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu("create", "-f", "qcow2", "-q", "-u", "-b", "base.raw", "-F", "raw", image, "1M")
    before = image.read_bytes()
    for words, told in (
        (["-u", "-b", "other.raw"], "backing format must be specified"),
        (["-u", "-b", "other.raw", "-F", "nonsense"], "Invalid format name: 'nonsense'"),
        (["-b", ""], "with -u only"),
        (["-u", "-b", "", "--dry-run"], "nothing but a name"),
    ):
        outcome = call("rebase", *words, image)
        assert outcome.status == 1
        assert told in outcome.err
    assert image.read_bytes() == before


@pytest.mark.parametrize("option", ["", "compat=0.10", "cluster_size=512"])
def test_a_commit_leaves_what_qemus_leaves(tmp_path: Path, option: str) -> None:
    left: list[bytes] = []
    for name, commit in (("ours", good), ("theirs", qemu)):
        folder = tmp_path / name
        folder.mkdir()
        base, top = folder / "base", folder / "top"
        base.write_bytes(content(1))
        qemu("create", "-q", "-f", "qcow2", *options(option), "-b", base, "-F", "raw", top)
        write = ["write -P 7 1M 1M", "write -P 8 3000k 5k", "write -z 4M 1M"]
        words = [word for each in write for word in ("-c", each)]
        subprocess.run(["qemu-io", "-f", "qcow2", *words, top], check=True, stdout=subprocess.DEVNULL)
        commit("commit", "-q", "-f", "qcow2", top)
        good("check", "-q", top)
        qemu("check", "-q", top)
        assert '"depth": 0' not in qemu("map", "--output", "json", "-f", "qcow2", top), "it is empty"
        assert read_all(top) == base.read_bytes()
        left.append(base.read_bytes())
    assert left[0] == left[1]


def test_a_long_range_is_planned_once_for_all_of_its_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[str] = []
    plan_write = ClusterWriter.plan_write

    def counted(self: ClusterWriter, offset: int, length: int) -> Answer:
        answer = plan_write(self, offset, length)
        answers.append(type(answer).__name__)
        return answer

    monkeypatch.setattr(ClusterWriter, "plan_write", counted)
    good("create", "-q", "-f", "qcow2", tmp_path / "disk", "64M")

    async def main() -> None:
        async with vblk.open(tmp_path / "disk", read_only=False) as disk:
            await disk.write(0, b"x" * 16 * MIB)

    asyncio.run(main())
    assert answers.count("Plan") == 1
    assert answers.count("NeedsRoom") <= 2, "for the first table, and for all clusters"
