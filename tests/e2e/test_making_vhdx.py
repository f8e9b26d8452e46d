"""VHDX images by create, convert, dd and measure, with every option of these."""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.support.command_line import call, good, start
from tests.support.vhdx.chain import Chain

KIB = 1 << 10
MIB = 1 << 20
SIZE = 21 * MIB


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Make the disk `raw` in the present folder, with holes and written zeros; return what it holds."""
    monkeypatch.chdir(tmp_path)
    chance = random.Random(7)
    content = bytearray(SIZE)
    for start_, length in ((0, MIB), (6 * MIB + 4 * KIB, 9 * KIB), (SIZE - 700, 700)):
        content[start_ : start_ + length] = chance.randbytes(length)
    with Path("raw").open("wb") as file:
        file.write(content[: 12 * MIB])
        file.seek(SIZE - 4096)
        file.write(content[SIZE - 4096 :])
    return bytes(content)


def read(path: str | Path) -> bytes:
    """Return what a disk holds."""
    good("convert", "-O", "raw", path, "read.back")
    try:
        return Path("read.back").read_bytes()
    finally:
        os.unlink("read.back")


def shown(path: str | Path) -> dict[str, object]:
    """Return what `info` says of an image, that of its format included."""
    report = json.loads(good("info", "--output", "json", path))
    return {**report, **report["format-specific"]["data"]}


def assert_sound(path: str | Path, blocks: int | None = None) -> None:
    """Assert that `check` finds nothing, and how many blocks have space."""
    report = json.loads(good("check", "--output", "json", path))
    assert report["check-errors"] == 0
    if blocks is not None:
        assert report.get("allocated-clusters", 0) == blocks


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {"type": "dynamic", "cluster-size": 8 * MIB, "logical-sector-size": 512}),
        ("subformat=fixed", {"type": "fixed", "cluster-size": 8 * MIB}),
        ("block_size=32M,subformat=dynamic", {"type": "dynamic", "cluster-size": 32 * MIB}),
        ("log_size=3M,block_state_zero=off", {"type": "dynamic"}),
        ("logical_sector_size=4096", {"logical-sector-size": 4096, "physical-sector-size": 4096}),
        ("physical_sector_size=512,nocow=on", {"logical-sector-size": 512, "physical-sector-size": 512}),
    ],
)
def test_create_makes_what_the_options_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, expected: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    announced = good("create", "-f", "vhdx", *(["-o", options] if options else []), "new", "40M")
    assert announced.startswith("Formatting 'new', fmt=vhdx size=41943040 log_size=")
    report = shown("new")
    assert report["virtual-size"] == 40 * MIB
    assert {key: report[key] for key in expected} == expected
    assert_sound("new")
    assert os.listdir() == ["new"]


def test_the_space_of_a_fixed_image_can_be_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new"
    good("create", "-f", "vhdx", "-o", "subformat=fixed,preallocation=falloc", path, "16M")
    assert path.stat().st_blocks * 512 >= 16 * MIB
    good("create", "-q", "-f", "vhdx", "-o", "subformat=fixed", path, "16M")
    assert path.stat().st_blocks * 512 < MIB


def test_create_makes_a_child_of_the_parents_size_named_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("sub")
    good("create", "-f", "vhdx", "-o", "logical_sector_size=4096", "sub/parent", "40M")
    text = good("create", "-f", "vhdx", "-b", "parent", "-F", "vhdx", "sub/child")
    assert text.endswith(" backing_file=parent backing_fmt=vhdx\n")
    good("create", "-f", "vhdx", "-o", "backing_file=sub/child,block_size=1M", "grandchild", "50M")
    child, grandchild = shown("sub/child"), shown("grandchild")
    assert (child["type"], child["virtual-size"], child["logical-sector-size"]) == (
        "differencing",
        40 * MIB,
        4096,
    )
    assert (grandchild["type"], grandchild["virtual-size"]) == ("differencing", 50 * MIB)
    assert child["backing-filename"] == ".\\parent"
    assert grandchild["backing-filename"] == ".\\sub\\child"
    assert_sound("grandchild", 0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-b", "raw"], "new: the parent of a VHDX image must be VHDX, and 'raw' is raw"),
        (["-b", "raw", "-F", "raw"], "new: the parent of a VHDX image must be VHDX, and 'raw' is raw"),
        (
            ["-b", "nosuch"],
            "new: Could not open 'nosuch': Could not open 'nosuch': No such file or directory\n"
            "Could not open backing image.",
        ),
        (["-b", "new"], "new: Error: Trying to create an image with the same filename as the backing file"),
        (["-F", "vhdx"], "new: Backing format cannot be used without backing file"),
        (["-b", "base", "-o", "subformat=fixed"], "new: a differencing image cannot be fixed"),
        (
            ["-b", "base", "-o", "logical_sector_size=4096"],
            "new: the logical sector size is 4096; it must be the parent's, 512",
        ),
        (
            ["-o", "logical_sector_size=1024", "-q"],
            "new: the logical sector size is 1024; it must be 512 or 4096",
        ),
        (["-o", "block_size=512M"], "new: Block size must not exceed 268435456"),
        (["-o", "preallocation=falloc"], "new: only a fixed VHDX image can be preallocated"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_touched(
    raw: bytes, words: list[str], sentence: str
) -> None:
    good("create", "-q", "-f", "vhdx", "base", "40M")
    Path("new").write_bytes(b"kept")
    outcome = call("create", "-f", "vhdx", *words, "new", "40M")
    assert (outcome.status, outcome.err) == (1, f"vblk: {sentence}\n")
    assert Path("new").read_bytes() == b"kept"
    assert sorted(os.listdir()) == ["base", "new", "raw"]


def test_an_empty_disk_is_refused_in_a_sentence(tmp_path: Path) -> None:
    outcome = call("create", "-f", "vhdx", tmp_path / "new", "0")
    assert outcome.err == (
        f"vblk: {tmp_path / 'new'}: a VHDX image cannot be empty: its size must be more than 0\n"
    )
    assert os.listdir(tmp_path) == []


def test_with_u_the_parents_own_parents_need_not_be_there(raw: bytes) -> None:
    good("create", "-q", "-f", "vhdx", "base", "40M")
    good("create", "-q", "-f", "vhdx", "-b", "base", "middle")
    os.rename("base", "away")
    assert call("create", "-f", "vhdx", "-b", "middle", "top").status == 1
    good("create", "-q", "-f", "vhdx", "-u", "-b", "middle", "top")
    os.rename("away", "base")
    assert_sound("top", 0)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-W", "-m", "16"],
        ["-m", "1"],
        ["-S", "0"],
        ["-S", "64k"],
        ["-C"],
        ["-t", "none"],
        ["-t", "writeback", "-T", "none"],
        ["-r", "200M"],
        ["-p"],
        ["--salvage"],
        ["-o", "subformat=fixed"],
        ["-o", "block_size=1M,logical_sector_size=4096,log_size=2M"],
        ["-o", "block_state_zero=off,physical_sector_size=512"],
    ],
    ids=" ".join,
)
def test_convert_makes_the_same_disk_with_every_option(raw: bytes, words: list[str]) -> None:
    good("convert", "-f", "raw", "-O", "vhdx", *words, "raw", "new")
    assert_sound("new", None if words else 2)
    assert read("new") == raw
    assert sorted(os.listdir()) == ["new", "raw"]


@pytest.mark.parametrize(
    "words", [[], ["-W", "-m", "16"], ["-S", "0"], ["-S", "64k"], ["-C"], ["-p"], ["--salvage"]], ids=" ".join
)
def test_convert_makes_a_child_that_reads_as_the_source(raw: bytes, words: list[str]) -> None:
    good("create", "-q", "-f", "vhdx", "base", str(SIZE))
    good("io", "-f", "vhdx", "-c", "write -P 3 512k 8M", "base")
    good("convert", "-f", "raw", "-O", "vhdx", *words, "-B", "base", "raw", "child")
    assert_sound("child")
    assert read("child") == raw
    assert sorted(os.listdir()) == ["base", "child", "raw"]


def test_convert_over_an_existing_image_leaves_nothing_of_its_former_content(raw: bytes) -> None:
    good("convert", "-f", "raw", "-O", "vhdx", "raw", "new")
    good("io", "-f", "vhdx", "-c", "write -P 3 0 21M", "new")
    identity = shown("new")["disk-id"]
    good("convert", "-n", "-f", "raw", "-O", "vhdx", "raw", "new")
    assert read("new") == raw
    assert shown("new")["disk-id"] == identity
    assert_sound("new")
    good("create", "-q", "-f", "vhdx", "empty", str(SIZE))
    good("convert", "-n", "--target-is-zero", "-f", "raw", "-O", "vhdx", "raw", "empty")
    assert read("empty") == raw
    assert_sound("empty", 2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-o", "block_size=3M"], "new: error while converting vhdx: Block size must be a power of two"),
        (
            ["-o", "subformat=foo"],
            "new: error while converting vhdx: Parameter 'subformat' does not accept value 'foo'",
        ),
        (["-o", "foo=1"], "Invalid parameter 'foo'"),
        (["-c"], "Compression not supported for this file format"),
        (
            ["-n", "--target-is-zero", "-B", "base"],
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
        (
            ["-B", "base", "raw"],
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ),
        (["-F", "vhdx"], "Backing format cannot be used without backing file"),
    ],
)
def test_what_convert_cannot_do_is_said_in_qemus_words(raw: bytes, words: list[str], sentence: str) -> None:
    good("create", "-q", "-f", "vhdx", "base", str(SIZE))
    outcome = call("convert", "-f", "raw", "-O", "vhdx", *words, "raw", "new")
    assert (outcome.status, outcome.err) == (1, f"vblk: {sentence}\n")
    assert sorted(os.listdir()) == ["base", "raw"]


def test_a_chain_becomes_one_image_and_one_image_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB)], size=16 * MIB)
    chain.child([(MIB, 512), (8 * MIB, MIB)])
    content = chain.top.model.read(0, 16 * MIB)
    good("convert", "-O", "vhdx", chain.top.path, "flat")
    assert shown("flat")["type"] == "dynamic"
    assert read("flat") == content
    good("convert", "-O", "vhdx", "-B", "base.vhdx", "flat", "again")
    assert shown("again")["type"] == "differencing"
    assert read("again") == content
    assert_sound("again", 2)


def test_a_kill_leaves_nothing_that_is_taken_for_a_disk(raw: bytes) -> None:
    Path("new").write_bytes(b"kept")
    process = start("convert", "-p", "-r", "64k", "-f", "raw", "-O", "vhdx", "raw", "new")
    assert process.stdout is not None
    assert process.stdout.read(1)  # the first progress line: the copy has begun
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = set(os.listdir()) - {"raw", "new"}
    assert Path("new").read_bytes() == b"kept"
    for verb in (["info"], ["check"], ["convert", "-O", "raw"], ["resize"], ["io", "-r", "-c", "read 0 512"]):
        outcome = call(*verb, left, *({"convert": ["x"], "resize": ["+1M"]}.get(verb[0], [])))
        assert outcome.status == 1
        assert "the creation of this image was never finished" in outcome.err


def test_dd_makes_a_vhdx(raw: bytes) -> None:
    good("dd", "-f", "raw", "-O", "vhdx", "bs=4k", "skip=3", "count=2000", "if=raw", "of=new")
    assert read("new") == raw[12 * KIB : 12 * KIB + 8000 * KIB]
    assert_sound("new")


def test_measure_tells_the_size_of_the_file_that_convert_makes(raw: bytes) -> None:
    with Path("raw").open("r+b") as file:  # measure reads no data: written zeros count
        file.truncate(2 * MIB)
        file.truncate(SIZE)
        file.seek(9 * MIB)
        file.write(b"x")
    for options in ("block_size=1M", "subformat=fixed", "block_size=2M,log_size=8M"):
        measured = json.loads(
            good("measure", "--output", "json", "-f", "raw", "-O", "vhdx", "-o", options, "raw")
        )
        good("convert", "-f", "raw", "-O", "vhdx", "-o", options, "-S", "0", "raw", "full")
        assert measured["fully-allocated"] == Path("full").stat().st_size
        good("convert", "-f", "raw", "-O", "vhdx", "-o", options, "-C", "raw", "new")
        assert measured["required"] == Path("new").stat().st_size
    assert good("measure", "-O", "vhdx", "--size", "1G") == (
        "required size: 4194304\nfully allocated size: 1077936128\n"
    )
    outcome = call("measure", "-O", "vhdx", "-o", "backing_file=x", "--size", "1G")
    assert "cannot be measured" in outcome.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_of_a_vhdx(raw: bytes, number: int) -> None:
    Path("new").write_bytes(b"kept")
    process = start("convert", "-p", "-r", "64k", "-f", "raw", "-O", "vhdx", "raw", "new")
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(number)
    assert process.communicate()[1] == ""
    assert process.returncode == 128 + number
    assert Path("new").read_bytes() == b"kept"
    assert sorted(os.listdir()) == ["new", "raw"]
