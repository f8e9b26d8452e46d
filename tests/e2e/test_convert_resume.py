"""`vblk convert --resume` as a user meets it: after kills, failures, and changes of the source."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.support.command_line import call, good
from tests.support.crash import NIGHTLY, SEED
from tests.support.killed_call import Killer

KIB, MIB = 1 << 10, 1 << 20
SIZE = 24 * MIB
KILLS = 100 if NIGHTLY else 10
OFTEN = {"vblk.jobs.resumption.PERIOD": 0.0005}
FORMATS = ("raw", "vhdx", "qcow2")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a disk with data, zeros and holes."""
    path = tmp_path / "source.raw"
    lot = Random(SEED)
    with path.open("wb") as file:
        for number in range(SIZE // MIB):
            if number % 5 != 3:
                file.seek(number * MIB)
                file.write(lot.randbytes(MIB - 4 * KIB))
        file.truncate(SIZE)
    return path


def hidden_in(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def words_for(form: str, source: Path, target: Path) -> list[str | Path]:
    return [
        "convert",
        "-q",
        "--resume",
        "--verify",
        "-m",
        "2",
        "-S",
        "4k",
        "-f",
        "raw",
        "-O",
        form,
        source,
        target,
    ]


def shows(form: str, target: Path, source: Path) -> bool:
    if form == "vhdx":
        good("check", "-q", target)
    return "identical" in good("compare", "-f", form, "-F", "raw", target, source)


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_killed_at_random_instants_goes_on_to_the_right_end(
    form: str, source: Path, in_memory: Path, tell: Callable[[str], None]
) -> None:
    target = in_memory / f"target.{form}"
    words = words_for(form, source, target)
    lot = Random(SEED)
    went_on = kills = 0
    with Killer(OFTEN) as killer:
        status, calls = killer.call(words)
        assert status == 0
        while kills < KILLS:
            target.unlink()
            if killer.call(words, lot.randrange(calls // 50, calls))[0] == 0:
                continue  # it needed fewer calls this time
            kills += 1
            journal = target.parent / f".{target.name}.vblk-journal"
            went_on += journal.exists() and journal.read_bytes().count(b"\n") > 1
            assert not target.exists() or not journal.exists() or shows(form, target, source)
            assert killer.call(words)[0] == 0
            assert os.listdir(target.parent) == [target.name]
            assert shows(form, target, source)
    assert went_on, "no kill came between two lines of the journal"
    tell(
        f"{kills} copies to {form} killed with SIGKILL, all resumed to the right end;"
        f" {went_on} went on in the middle"
    )


def begun(source: Path, target: Path, *, form: str = "raw", share: float = 0.6) -> list[str | Path]:
    """Kill a copy on its way, so that there is something to go on from; return its command."""
    words = words_for(form, source, target)
    with Killer(OFTEN) as killer:
        _, calls = killer.call(words)
        while True:
            target.unlink(missing_ok=True)
            killer.call(words, int(calls * share))
            if len(hidden_in(target.parent)) == 2 and journal_of(target).read_bytes().count(b"\n") > 1:
                return words


def journal_of(target: Path) -> Path:
    return target.parent / f".{target.name}.vblk-journal"


def test_what_was_copied_is_not_copied_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    words = begun(source, target)
    done = json.loads(journal_of(target).read_bytes().splitlines()[-1])["done"]
    outcome = call(*(word for word in words if word not in ("-q", "--verify")), "-p", "--progress", "json")
    assert outcome.status == 0
    assert f"going on: {done} of {SIZE} bytes were copied before\n" in outcome.err
    totals = {json.loads(line)["length"] for line in outcome.err.splitlines() if line.startswith("{")}
    assert max(totals) <= SIZE - done
    assert hidden_in(tmp_path) == []
    assert shows("raw", target, source)


def test_a_source_that_has_changed_is_refused_and_the_part_is_kept(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    words = begun(source, target)
    with source.open("r+b") as file:
        file.write(b"x")
    os.utime(source, ns=(1, 1))
    before = hidden_in(tmp_path)
    outcome = call(*words)
    assert outcome.status == 1
    assert f"'{source}' has changed since the copy was begun; remove it to begin anew" in outcome.err
    assert not target.exists()
    assert hidden_in(tmp_path) == before
    journal_of(target).unlink()
    good(*words)
    assert hidden_in(tmp_path) == []
    assert shows("raw", target, source)


def test_other_options_are_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    words = begun(source, target)
    outcome = call(*words[:2], "-o", "preallocation=full", *words[2:])
    assert outcome.status == 1
    assert "the copy was begun with other options" in outcome.err
    good(*words)


def test_a_failure_keeps_what_was_copied(source: Path, tmp_path: Path) -> None:
    """The file may not become as large as the disk, and later it may."""
    target = tmp_path / "target"
    words = words_for("vhdx", source, target)
    program = ["prlimit", f"--fsize={16 * MIB}", str(Path(sys.executable).parent / "vblk")]
    limited = subprocess.run([*program, *map(str, words)], capture_output=True, text=True, check=False)
    assert limited.returncode == 1
    assert "what was copied is kept: the same command goes on from there" in limited.stderr
    assert len(hidden_in(tmp_path)) == 2
    good(*words)
    assert shows("vhdx", target, source)
    assert hidden_in(tmp_path) == []


def test_two_at_one_target_do_not_meet(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    words = begun(source, target)
    with journal_of(target).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = call(*words)
    assert outcome.status == 1
    assert "somebody copies to this target now" in outcome.err
    good(*words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-n"], "--resume is for a new image, which -n does not make"),
        (["--salvage"], "--resume and --salvage do not go together"),
    ],
)
def test_what_does_not_go_with_it_is_said(
    words: list[str], sentence: str, source: Path, tmp_path: Path
) -> None:
    outcome = call("convert", "--resume", *words, source, tmp_path / "target")
    assert outcome.status == 1
    assert sentence in outcome.err
    assert hidden_in(tmp_path) == []


def test_a_target_written_in_place_and_a_source_that_nobody_can_watch_are_refused(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    os.link(target, tmp_path / "other name")
    outcome = call("convert", "--resume", source, target)
    assert outcome.status == 1
    assert "what is written in place is not made with a journal" in outcome.err
    outcome = call("convert", "--resume", "--image-opts", "driver=null-co,size=1M", tmp_path / "new")
    assert outcome.status == 1
    assert target.read_bytes() == b"old"
    assert hidden_in(tmp_path) == []


def test_a_journal_of_somebody_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    journal_of(target).write_bytes(b"not ours\n")
    outcome = call("convert", "--resume", source, target)
    assert outcome.status == 1
    assert "its first line is no journal's" in outcome.err
    assert journal_of(target).read_bytes() == b"not ours\n"


def test_a_copy_that_was_whole_before_its_journal_went_is_not_made_again_but_a_later_one_is(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    words = begun(source, target)
    part, journal = tmp_path / ".target.vblk-part", journal_of(target)
    before = journal.read_bytes()
    good(*words)
    head = {**json.loads(before.splitlines()[0]), "part": target.stat().st_ino}
    whole = {"done": 0, "whole": target.stat().st_mtime_ns}
    lines = "".join(json.dumps(each) + "\n" for each in (head, whole))
    journal.write_text(lines)
    inode = target.stat().st_ino
    good(*words)
    assert target.stat().st_ino == inode
    assert not journal.exists()
    journal.write_text(lines)
    target.write_bytes(b"something else")
    good(*words)
    assert shows("raw", target, source)
    assert hidden_in(tmp_path) == []
    assert not part.exists()
