"""The manners of every call: usage, help, one line for an error, signals, closed pipes."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.command_line import call, good, start
from vblk.cli.verbs import ABSENT, VERBS, load_verb

MIB = 1 << 20


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_has_help_and_a_usage(name: str) -> None:
    assert f"vblk {name}" in good(name, "--help")
    verb = load_verb(name)
    assert verb is not None
    assert verb.name == name


@pytest.mark.parametrize("name", ABSENT)
def test_an_absent_verb_says_so_in_one_sentence(name: str) -> None:
    outcome = call(name, "-x", "whatever")
    assert outcome.status == 1
    assert outcome.err.startswith(f"vblk: '{name}' is not in this version of vblk: ")
    assert outcome.err.count("\n") == 1
    assert name not in [line.split()[0] for line in good("--help").splitlines() if line.startswith("  ")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Not enough arguments"),
        (["frob"], "Command not found: frob"),
        (["--foo"], "unrecognized option '--foo'"),
        (["info"], "Expecting one image file name"),
        (["info", "a", "b"], "Expecting one image file name"),
        (["info", "-Z", "a"], "unrecognized option '-Z'"),
        (["info", "-f"], "missing argument for option '-f'"),
        (["check", "-r", "x", "a"], "Unknown option value for -r (expecting 'leaks' or 'all'): x"),
        (["compare", "a"], "Expecting two image file names"),
    ],
)
def test_wrong_usage_points_to_the_help_as_qemu_does(words: list[str], sentence: str) -> None:
    outcome = call(*words, program="qemu-img")
    assert outcome.err == f"qemu-img: {sentence}\nTry 'qemu-img --help' for more information\n"
    assert outcome.status == 1


def test_under_qemus_name_a_verbs_help_is_that_of_the_program() -> None:
    text = good("info", "-h", program="qemu-img")
    assert text == good("--help", program="qemu-img")
    assert text.startswith("qemu-img version ")


def test_objects_that_this_version_has_not_are_refused_in_a_sentence(tmp_path: Path) -> None:
    outcome = call("info", "--object", "iothread,id=a", tmp_path)
    assert outcome.status == 1
    assert outcome.err == "vblk: objects of the kind 'iothread' are not in this version of vblk\n"


def test_a_defect_is_one_line_and_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("on\npurpose")

    monkeypatch.setattr("vblk.cli.verbs.load_verb", broken)
    outcome = call("info", "a")
    assert outcome.status == 70
    assert outcome.err == (
        "vblk: internal error: ZeroDivisionError: on purpose (set VBLK_DEBUG=1 to see where it happened)\n"
    )
    monkeypatch.setenv("VBLK_DEBUG", "1")
    assert "Traceback" in call("info", "a").err


def test_a_name_of_any_bytes_is_printed_as_it_is(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\n\xc3\xa4")
    Path(path).write_bytes(bytes(512))
    process = start("info", path)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith(f"image: {path}\n")


def test_a_closed_pipe_ends_the_run_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(512))
    reader, writer = os.pipe()
    os.close(reader)
    process = start("info", tmp_path / "a", stdout=writer)
    os.close(writer)
    assert process.communicate()[1] == ""
    assert process.returncode == 141


def test_a_full_disk_under_the_output_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(512))
    full = os.open("/dev/full", os.O_WRONLY)
    process = start("info", tmp_path / "a", stdout=full)
    os.close(full)
    assert process.communicate()[1] == "vblk: cannot write the output: No space left on device\n"
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_ends_a_conversion_without_a_trace(tmp_path: Path, number: int, status: int) -> None:
    (tmp_path / "a").write_bytes(b"a" * (4 * MIB))
    (tmp_path / "t").write_bytes(b"kept")
    process = start("convert", "-p", "-r", "64k", "-f", "raw", tmp_path / "a", tmp_path / "t")
    assert process.stdout is not None
    assert process.stdout.read(1)  # the first progress line: the copy has begun
    process.send_signal(number)
    assert process.communicate()[1] == ""
    assert process.returncode == status
    assert sorted(os.listdir(tmp_path)) == ["a", "t"]
    assert (tmp_path / "t").read_bytes() == b"kept"
