"""`vblk io` and qemu-io carry out the same scripts on copies of one image, and say the same."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.interop

needs_qemu = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")

OURS = [sys.executable, "-c", "from vblk.cli.main import run_as; run_as('qemu-io')"]
THEIRS = ["qemu-io"]
TIMES = re.compile(
    r"; [0-9.:]+( sec)? \(.* ops/sec\)|,[0-9]+:[0-9]{2}:[0-9]{2}\.[0-9]{2},[0-9.]+,[0-9.]+$", re.M
)


@dataclass
class Outcome:
    out: str
    err: str
    status: int
    image: bytes


def carry_out(program: list[str], folder: Path, words: list[str], script: str | None) -> Outcome:
    image = folder / "a.img"
    folder.mkdir()
    image.write_bytes(b"".join(bytes([number % 251]) * 4096 for number in range(64)))
    (folder / "pattern").write_bytes(b"abc")
    run = subprocess.run(
        [*program, *words], input=script or "", capture_output=True, text=True, cwd=folder, timeout=60
    )
    return Outcome(TIMES.sub("", run.stdout), run.stderr, run.returncode, image.read_bytes())


def same(tmp_path: Path, words: list[str], script: str | None = None) -> Outcome:
    theirs = carry_out(THEIRS, tmp_path / "theirs", words, script)
    ours = carry_out(OURS, tmp_path / "ours", words, script)
    assert ours == theirs
    return ours


def commands(*lines: str) -> list[str]:
    return [word for line in lines for word in ("-c", line)]


SCRIPTS = {
    "plain": [
        "write -P 0xa 512 1k",
        "read -v 500 40",
        "readv -P 0xa 512 512 512",
        "writev -P 7 0 1 2 3",
        "read -Cv 0 8",
    ],
    "wrong patterns": [
        "read -P 9 0 512",
        "read -q -P 9 -s 3 -l 4 0 512",
        "readv -P 9 8k 1k",
        "read -P 300 0 1",
    ],
    "zeros": [
        "write -z 100 5000",
        "write -zu 8k 16k",
        "write -z -n 64k 4k",
        "read -P 0 100 5000",
        "write -zf 3 9",
    ],
    "a file": ["write -s pattern 5 100", "read -v 0 32", "write -s nothing 0 1", "write -s . 0 1"],
    "past the end": [
        "read 256k 1",
        "write 255k 2k",
        "discard 256k 1",
        "readv 255k 1k 1",
        "writev 7E 1",
        "aio_read 1M 1",
    ],
    "numbers": [
        "read x 1",
        "read 0 -1",
        "read -1 1",
        "read 0.5k 1",
        "read 8E 1",
        "read 0 3G",
        "readv 0 1G 1G",
    ],
    "options": [
        "read -Z 0 1",
        "write -n 0 1",
        "write -u 0 1",
        "write -zP 1 0 1",
        "write -bz 0 512",
        "write -cf 0 512",
    ],
    "words": [
        "",
        "  ",
        "foo",
        "read",
        "length 1",
        "alloc 1 2 3",
        "# a comment",
        "read 0 1 2",
        "quit",
        "length",
    ],
    "discard": ["discard 0 64k", "discard -C 0 512", "discard -q 8k 8k", "read -P 0 0 64k", "discard x 1"],
    "facts": ["length", "map", "alloc 0", "alloc 100k 1M", "alloc 1M 1", "info", "l", "i", "a 0 1k"],
    "truncate": [
        "truncate 1M",
        "length",
        "truncate 1500",
        "length",
        "t 512",
        "read 0 513",
        "truncate -m foo 1",
    ],
    "preallocation": [
        "truncate -m falloc 300k",
        "truncate -m full 400k",
        "truncate -m metadata 1M",
        "truncate -m off 1k",
    ],
    "reopen": [
        "reopen -r",
        "write 0 1",
        "reopen -w",
        "write 0 1",
        "reopen -r -w",
        "reopen -o foo=1",
        "reopen -o offset=4096",
        "length",
    ],
    "breakpoints without blkdebug": ["break pwritev A", "resume A", "remove_break A"],
    "no image": ["close", "length", "close", "read", "open", "open a b"],
    "background": [
        "aio_write -P 1 0 4k",
        "aio_flush",
        "aio_read -P 1 0 4k",
        "aio_flush",
        "aio_write -z 0 1k 1",
        "aio_read -i 0 1",
    ],
    "waiting": ["sleep 1", "sleep x", "sleep", "sigraise x", "sigraise 99", "sigraise 0"],
    "stable": ["flush", "write -f 0 512", "flush 1", "writev -f 0 1"],
    "listing": ["help", "help length", "help foo", "help map"],
}


@needs_qemu
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_and_does_the_same(tmp_path: Path, name: str) -> None:
    same(tmp_path, ["-f", "raw", *commands(*SCRIPTS[name]), "a.img"])


@needs_qemu
@pytest.mark.parametrize(
    "words",
    [
        ["-r", "-f", "raw", *commands("write 0 1", "truncate 1", "discard 0 1", "read 0 1"), "a.img"],
        ["-s", "-f", "raw", *commands("write -P 5 0 4k", "read -P 5 0 4k", "read -P 1 4k 4k"), "a.img"],
        ["-s", "-r", "-f", "raw", *commands("write -P 5 0 4k", "read -P 5 0 4k"), "a.img"],
        ["-n", "-f", "raw", *commands("write -P 5 3 10", "read -v 0 16", "write -z 100 5000"), "a.img"],
        ["-n", "-m", "-f", "raw", *commands("write -P 5 512 4k", "read -P 5 512 4k"), "a.img"],
        ["-t", "writeback", "-d", "off", "-f", "raw", *commands("discard 0 4k", "write -P 1 8k 4k"), "a.img"],
        ["-C", "-f", "raw", *commands("read -P 0 0 4k", "write 0 1"), "a.img"],
        ["-U", "-r", "-f", "raw", *commands("length"), "a.img"],
        ["-U", "-f", "raw", *commands("length"), "a.img"],
        ["-C", "-r", "-f", "raw", *commands("length"), "a.img"],
        ["--image-opts", *commands("length"), "driver=raw,offset=4096,file.filename=a.img"],
        ["--image-opts", "-f", "raw", "driver=raw"],
        ["--cache", "writeback", "--aio", "threads", "-f", "raw", "-c", "read 0 64k", "a.img"],
        ["-c", "read 0 1", "a.img"],
        ["-f", "foo", "a.img"],
        ["-f", "raw", "missing"],
        ["-t", "foo", "a.img"],
        ["-d", "foo", "a.img"],
        ["-i", "foo", "a.img"],
        ["-i", "native", "a.img"],
        commands("open -o driver=raw a.img", "length", "open a.img", "close", "length"),
        commands("open -r -o driver=raw a.img", "write 0 1"),
        commands("open -o driver=raw,foo=1 a.img", "open -o driver=raw", "open -o foo=1"),
        commands("open -o driver=raw,file.align=4k blkdebug::a.img", "write -P 3 700 5000", "read -v 690 20"),
        commands("open -o driver=raw,file.align=3 blkdebug::a.img"),
    ],
    ids=lambda words: " ".join(words),
)
def test_every_way_of_opening_says_and_does_the_same(tmp_path: Path, words: list[str]) -> None:
    same(tmp_path, words)


@needs_qemu
@pytest.mark.parametrize(
    "rule",
    [
        "inject-error.0.event=read_aio,inject-error.0.errno=28",
        "inject-error.0.event=write_aio,inject-error.0.once=on",
        "inject-error.0.event=none,inject-error.0.sector=1,inject-error.0.iotype=read",
        "inject-error.0.event=none,inject-error.0.iotype=discard",
        "inject-error.0.event=none,inject-error.0.iotype=write-zeroes",
        "inject-error.0.event=none,inject-error.0.iotype=block-status",
        "set-state.0.event=write_aio,set-state.0.new_state=2,inject-error.0.event=read_aio,inject-error.0.state=2",
    ],
)
def test_injected_errors_hit_the_same_requests(tmp_path: Path, rule: str) -> None:
    filtered = ",".join(f"file.{option}" for option in rule.split(","))
    same(
        tmp_path,
        commands(
            f"open -t writeback -o driver=raw,{filtered} blkdebug::a.img",
            "read 0 512",
            "read 512 512",
            "write -P 1 0 512",
            "write -P 1 0 512",
            "read 0 1024",
            "discard 0 4k",
            "write -z 4k 4k",
            "alloc 0 512",
        ),
    )


@needs_qemu
@pytest.mark.parametrize(
    "script",
    [
        "",
        "length\nread 0 512\nfoo\n\n   \nquit\nlength\n",
        "length\nread -v 0 16",
        "close\nlength\n",
        "write -P 1 0 1k\naio_read -P 1 0 1k\naio_flush\nq\n",
    ],
)
def test_commands_from_standard_input_have_the_same_prompts(tmp_path: Path, script: str) -> None:
    outcome = same(tmp_path, ["-f", "raw", "a.img"], script)
    assert outcome.out.startswith("qemu-io> ")


BREAKS = """\
open -o driver=raw,file.align=4k blkdebug::a.img
break pwritev_rmw_after_tail A
aio_write -P 10 0x6000 0x200
wait_break A
break pwritev_rmw_after_head B
aio_write -P 10 0x7e00 0x200
wait_break B
aio_write -P 11 0x6800 0x1000
resume A
sleep 100
resume B
aio_flush
break pwritev A
aio_write -P 10 0x10000 0x800
wait_break A
break pwritev_rmw_after_tail B
aio_write -P 11 0x10000 0x400
break pwritev_done C
resume A
wait_break C
resume C
wait_break B
resume B
aio_flush
"""


@needs_qemu
def test_requests_that_meet_in_one_block_leave_the_same_bytes(tmp_path: Path) -> None:
    theirs = carry_out(THEIRS, tmp_path / "theirs", [], BREAKS)
    ours = carry_out(OURS, tmp_path / "ours", [], BREAKS)
    for image in (ours.image, theirs.image):  # the last two writes overlap: either may win, no mix may
        assert image[0x10000:0x10400] in (bytes([10]) * 0x400, bytes([11]) * 0x400)
    assert ours.image[:0x10000] == theirs.image[:0x10000]
    assert ours.image[0x10400:] == theirs.image[0x10400:]
    assert (ours.err, ours.status) == (theirs.err, theirs.status)
    # When a request ends its words may come before or after the next prompt.
    said = [sorted(outcome.out.replace("qemu-io> ", "\n").split("\n")) for outcome in (ours, theirs)]
    assert said[0] == said[1]


@needs_qemu
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_raised_signal_ends_the_process_after_what_was_said(tmp_path: Path, number: int) -> None:
    outcome = same(tmp_path, ["-f", "raw", *commands("write 0 512", f"sigraise {number}"), "a.img"])
    assert outcome.status == -number


@needs_qemu
def test_a_signal_that_is_ignored_changes_nothing(tmp_path: Path) -> None:
    words = commands("write 0 512", f"sigraise {int(signal.SIGPIPE)}", "length")
    assert same(tmp_path, ["-f", "raw", *words, "a.img"]).status == 0


def test_abort_ends_the_process_by_its_signal(tmp_path: Path) -> None:
    outcome = carry_out(OURS, tmp_path / "ours", ["-f", "raw", "-c", "abort", "a.img"], None)
    assert outcome.status == -signal.SIGABRT


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-T", "x", "a.img"], "qemu-io: --trace is not supported: vblk has no trace events"),
        (
            ["--object", "iothread,id=a", "a.img"],
            "objects of the kind 'iothread' are not in this version of vblk",
        ),
        (["-f", "raw", "-i", "io_uring", "a.img"], "aio=io_uring is not supported in this version of vblk"),
        (["a.img", "b.img"], "qemu-io: Expecting at most one image file name"),
        (["-Z"], "qemu-io: unrecognized option '-Z'"),
    ],
)
def test_what_is_not_supported_is_said_in_one_sentence(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    outcome = carry_out(OURS, tmp_path / "ours", words, None)
    assert sentence in outcome.err
    assert (outcome.out, outcome.status) == ("", 1)


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["-V"], ["--version"]])
def test_help_and_version_are_told_without_an_image(tmp_path: Path, words: list[str]) -> None:
    outcome = carry_out(OURS, tmp_path / "ours", words, None)
    assert "qemu-io" in outcome.out
    assert (outcome.err, outcome.status) == ("", 0)


def test_under_its_own_name_the_prompt_is_ours(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from vblk.cli.main import run; run()", "io"]
    outcome = carry_out(program, tmp_path / "ours", ["-f", "raw", "a.img"], "length\n")
    assert outcome.out == "vblk> 256 KiB\nvblk> "


def test_a_closed_pipe_is_no_error_message(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run(
            [*OURS, "-f", "raw", "-c", "read -v 0 1M", str(image)],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert run.stderr == ""
    assert run.returncode != 0
