"""The verbs that make and change images: create, convert, dd, resize, bench, drop-in."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import call, good
from tests.support.vhdx.chain import Chain

MIB = 1 << 20


def test_create_announces_and_makes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert good("create", "-f", "raw", path, "1.5K") == f"Formatting '{path}', fmt=raw size=1536\n"
    assert path.read_bytes() == bytes(1536)
    assert good("create", "-q", path, "1M") == ""
    text = good("create", "-o", "preallocation=falloc", "-o", "size=2M", path)
    assert text == f"Formatting '{path}', fmt=raw size=2097152 preallocation=falloc\n"
    assert good("create", "-f", "raw", "-o", "help").startswith("Supported raw options:\n  size=<size>")
    assert "preallocation=<str>" in good("create", "-o", "help", path, "1M")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Expecting image file name\nTry 'vblk --help' for more information"),
        (["{}"], "{}: Image creation needs a size parameter"),
        (["-f", "foo", "{}", "1M"], "{}: Unknown file format 'foo'"),
        (["-f", "bochs", "{}", "1M"], "{}: Format driver 'bochs' does not support image creation"),
        (["-b", "x", "{}", "1M"], "{}: Backing file not supported for file format 'raw'"),
        (["-o", "foo=1", "{}", "1M"], "{}: Invalid parameter 'foo'"),
        (["-o", "", "{}", "1M"], "Invalid option list: "),
        (["-o", "size=1M", "{}", "1M"], "{}: The image size must be specified only once"),
        (["-q", "-o", "preallocation=bar", "{}", "1M"], "{}: invalid parameter value: bar"),
        (["-o", "preallocation=metadata", "{}", "1M"], "{}: Unsupported preallocation mode: metadata"),
        (["{}", "9E"], "Invalid image size specified. Must be between 0 and 9223372036854775807."),
        (["{}", "7.9999E"], "{}: The image size is too large for file format 'raw'"),
        (["{}/b", "1M"], "{}/b: Could not create '{}/b': No such file or directory"),
        (["nbd://x", "1M"], "nbd://x: Protocol driver 'nbd' does not support image creation"),
    ],
)
def test_what_cannot_be_created_is_said_in_qemus_words(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    path = str(tmp_path / "a")
    outcome = call("create", *(word.replace("{}", path) for word in words))
    assert (outcome.status, outcome.err) == (1, f"vblk: {sentence.replace('{}', path)}\n")
    assert os.listdir(tmp_path) == []


def test_convert_flattens_a_chain(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB)], size=16 * MIB)
    chain.child([(MIB, 512), (8 * MIB, MIB)])
    for words in ([], ["-W", "-m", "16"], ["-S", "4k"], ["-S", "0"], ["-t", "writeback"], ["-C"]):
        target = tmp_path / "flat"
        assert good("convert", *words, "-f", "vhdx", "-O", "raw", chain.top.path, target) == ""
        assert target.read_bytes() == chain.top.model.read(0, 16 * MIB)


def test_convert_over_an_existing_image_writes_zeros_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * MIB + bytes(MIB))
    (tmp_path / "holes").touch()
    os.truncate(tmp_path / "holes", 2 * MIB)
    (tmp_path / "t").write_bytes(b"t" * (3 * MIB))
    good("convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "holes", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == bytes(2 * MIB) + b"t" * MIB
    good(
        "convert",
        "-n",
        "-f",
        "raw",
        "--target-image-opts",
        tmp_path / "a",
        f"driver=raw,file.filename={tmp_path / 't'}",
    )
    assert (tmp_path / "t").read_bytes() == b"a" * MIB + bytes(MIB) + b"t" * MIB


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a"], "Must specify image file name"),
        (["-C", "-S", "4k", "a", "t"], "Cannot enable copy offloading when -S is used"),
        (["-C", "--salvage", "a", "t"], "Cannot use copy offloading in salvaging mode"),
        (
            ["-m", "17", "a", "t"],
            "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16",
        ),
        (["--target-is-zero", "a", "t"], "--target-is-zero requires use of -n flag"),
        (["--target-image-opts", "a", "t"], "--target-image-opts requires use of -n flag"),
        (["-n", "-o", "size=1", "a", "t"], "-o has no effect when skipping image creation"),
        (["-O", "foo", "a", "t"], "Unknown file format 'foo'"),
        (["-c", "a", "t"], "Compression not supported for this file format"),
        (["-B", "x", "a", "t"], "Backing file not supported for file format 'raw'"),
        (["--skip-broken-bitmaps", "a", "t"], "Use of --skip-broken-bitmaps requires --bitmaps"),
        (["-t", "foo", "a", "t"], "Invalid cache option: foo"),
        (["-T", "foo", "a", "t"], "Invalid source cache option: foo"),
        (["-n", "a", "t"], "Could not open 't': Could not open 't': No such file or directory"),
        (["nosuch", "t"], "Could not open 'nosuch': Could not open 'nosuch': No such file or directory"),
        (["a", "."], ".: error while converting raw: Could not create '.': Is a directory"),
        (["-n", "a", "small"], "output file is smaller than input file"),
        (["--image-opts", "-f", "raw", "a", "t"], "--image-opts and --format are mutually exclusive"),
    ],
)
def test_what_convert_refuses_is_said_in_qemus_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(b"a" * MIB)
    Path("small").write_bytes(b"a" * 512)
    outcome = call("convert", *words)
    assert (outcome.status, outcome.err) == (1, f"vblk: {sentence}\n")
    assert sorted(os.listdir()) == ["a", "small"]


def test_an_image_is_not_converted_onto_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(b"a" * MIB)
    outcome = call("convert", "a", "a")
    assert outcome.status == 1
    assert outcome.err.startswith(
        'vblk: a: error while converting raw: Failed to get "write" lock\n'
        "Is another process using the image [a]?\n"
    )
    assert Path("a").read_bytes() == b"a" * MIB
    assert os.listdir() == ["a"]


def test_progress_is_qemus_line_or_json(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 128 * MIB)
    with (tmp_path / "a").open("r+b") as file:
        for start in (0, 2, 4, 32):
            file.seek(start * MIB)
            file.write(b"x" * MIB)
    text = good("convert", "-p", "-f", "raw", tmp_path / "a", tmp_path / "b")
    percents = ["0.00", "25.00", "50.00", "75.00", "100.00", "100.00"]
    assert text == "".join(f"    ({percent}/100%)\r" for percent in percents) + "\n"
    records = call("convert", "--progress", "json", tmp_path / "a", tmp_path / "b").err.splitlines()
    last = json.loads(records[-1])
    assert (last["offset"], last["length"], last["finished"]) == (4 * MIB, 4 * MIB, True)


def test_dd_copies_blocks(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(bytes(range(256)) * 8192)
    content = source.read_bytes()
    target = tmp_path / "b"
    good("dd", f"if={source}", f"of={target}", "bs=1000", "skip=3", "count=7")
    assert target.read_bytes() == content[3000:10000] + bytes(-7000 % 512)
    good("dd", f"if={source}", f"of={target}", "bs=1M", "count=1M")
    assert target.read_bytes() == content
    outcome = call("dd", f"if={source}", f"of={target}", "skip=100M")
    assert (outcome.status, outcome.err) == (0, f"vblk: {source}: cannot skip to specified offset\n")
    assert target.stat().st_size == 0
    for words, sentence in (
        (["if=a"], "Must specify both input and output files"),
        (["if=a", "of=b", "seek=1"], "unrecognized operand seek"),
        (["if=a", "of=b", "bs=0"], "Invalid bs specified. Must be between 1 and 2147483647."),
    ):
        assert call("dd", *words).err == f"vblk: {sentence}\n"


def test_resize_takes_its_last_word_for_a_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * MIB)
    assert good("resize", "-f", "raw", path, "+1M") == "Image resized.\n"
    assert path.stat().st_size == 2 * MIB
    refused = call("resize", "-f", "raw", path, "-1M")
    assert refused.status == 1
    assert refused.err.startswith(
        "vblk: Use the --shrink option to perform a shrink operation.\nvblk: warning: "
    )
    good("resize", "-f", "raw", "--shrink", path, "-1M")
    assert path.read_bytes() == b"a" * MIB
    outcome = call("resize", path, "+512")
    assert outcome.err.startswith(f"WARNING: Image format was not specified for '{path}'")
    refusals: list[tuple[list[str | Path], str]] = [
        ([path], "Not enough arguments\nTry 'vblk --help' for more information"),
        (["-f", "raw", "--shrink", path, "-100M"], "New image size must be positive"),
        (["-f", "raw", "--preallocation=foo", path, "+1M"], "Invalid preallocation mode 'foo'"),
    ]
    for words, sentence in refusals:
        assert call("resize", *words).err == f"vblk: {sentence}\n"


def test_bench_sends_what_it_announces(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(MIB))
    lines = good("bench", "-f", "raw", "-w", "-c", "64", "-d", "4", "--pattern=7", "--flush-interval=8", path)
    assert lines.splitlines()[:2] == [
        "Sending 64 write requests, 4096 bytes each, 4 in parallel (starting at offset 0, step size 4096)",
        "Sending flush every 8 requests",
    ]
    assert path.read_bytes() == b"\x07" * (256 << 10) + bytes(MIB - (256 << 10))
    assert call("bench", "-c", "1", "-s", "2M", path).err == "vblk: Failed request: Input/output error\n"
    refusals: list[tuple[list[str | Path], str]] = [
        (["--flush-interval=2", path], "--flush-interval is only available in write tests"),
        (["-w", "--flush-interval=2", path], "Flush interval can't be smaller than depth"),
        (["-d", "0", path], "Invalid queue depth specified"),
        (["-i", "native", path], "-i native: this version of vblk has the engine 'threads' only"),
    ]
    for words, sentence in refusals:
        assert call("bench", *words).err == f"vblk: {sentence}\n"


def test_drop_in_programs_speak_under_qemus_names(tmp_path: Path) -> None:
    programs = tmp_path / "with space"
    listed = good("drop-in", programs).split("\n")[:-1]
    assert sorted(os.path.basename(path) for path in listed) == [
        "qemu-img",
        "qemu-io",
        "qemu-nbd",
        "qemu-storage-daemon",
    ]
    (tmp_path / "vblk.py").write_text("raise SystemExit('the wrong one')")

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        first, *rest = words
        return subprocess.run(
            [programs / first, *rest], capture_output=True, text=True, cwd=tmp_path, check=False
        )

    assert run("qemu-img", "--version").stdout.startswith("qemu-img version 7.2.0 (vblk ")
    failed = run("qemu-img", "info", "nosuch")
    assert (
        failed.stderr
        == "qemu-img: Could not open 'nosuch': Could not open 'nosuch': No such file or directory\n"
    )
    assert run("qemu-nbd").returncode == 1
    assert run("qemu-storage-daemon", "--version").stdout.startswith(
        "qemu-storage-daemon version 7.2.0 (vblk "
    )
