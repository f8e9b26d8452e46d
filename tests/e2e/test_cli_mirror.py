"""`vblk mirror` and `vblk jobs`: on their own, and with a daemon whose disk is in use."""

import json
import os
import random
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.support.command_line import call, good
from tests.support.crash import NIGHTLY, SEED
from tests.support.killed_call import Killer
from tests.support.qmp import OURS, QEMU, Talk

MIB = 1 << 20
KILLS = 100 if NIGHTLY else 6
SIZE = 4 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk with something on it."""
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(MIB) + bytes(2 * MIB) + b"e" * MIB)
    return path


@pytest.mark.parametrize("form", ["raw", "vhdx", "qcow2"])
def test_an_image_is_mirrored_to_one_that_is_made(tmp_path: Path, disk: Path, form: str) -> None:
    target = tmp_path / "copy"
    assert good("mirror", "-f", "raw", "-O", form, disk, target) == ""
    good("compare", "-q", "-f", "raw", "-F", form, disk, target)


def test_an_existing_target_is_written_in_place_with_n(tmp_path: Path, disk: Path) -> None:
    target = tmp_path / "copy"
    target.write_bytes(b"x" * SIZE)
    inode = os.stat(target).st_ino
    good("mirror", "-f", "raw", "-n", disk, target)
    assert target.read_bytes() == disk.read_bytes()
    assert os.stat(target).st_ino == inode


def test_progress_comes_as_json_lines(tmp_path: Path, disk: Path) -> None:
    outcome = call("mirror", "-f", "raw", "--progress", "json", disk, tmp_path / "copy")
    records = [json.loads(line) for line in outcome.err.splitlines()]
    assert outcome.status == 0
    assert records[-1] | {"rate": 0, "eta": 0} == {
        "offset": SIZE,
        "length": SIZE,
        "percent": 100.0,
        "rate": 0,
        "eta": 0,
        "finished": True,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "Expecting a source and a target"),
        (["--resume", "-n", "a", "b"], "--resume is for a new image that gets all of a disk"),
        (["--resume", "--sync", "none", "a", "b"], "not with -n and --sync none"),
        (["--pivot", "a", "b"], "--pivot is for a disk in use: say which daemon has it with --daemon"),
        (["--converge", "x", "a", "b"], "--converge takes a number of seconds, not 'x'"),
        (["--sync", "some", "a", "b"], "--sync must be full, top or none"),
        (["--daemon", "s", "-o", "size=1", "a", "b"], "-o cannot be used with --daemon"),
        (["--daemon", "nobody.sock", "a", "b"], "Failed to connect to 'nobody.sock'"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str) -> None:
    outcome = call("mirror", *words)
    assert outcome.status == 1
    assert said in outcome.err


def test_a_target_that_is_too_small_is_refused_and_left_alone(tmp_path: Path, disk: Path) -> None:
    target = tmp_path / "copy"
    target.write_bytes(b"x" * MIB)
    outcome = call("mirror", "-f", "raw", "-n", disk, target)
    assert outcome.status == 1
    assert target.read_bytes() == b"x" * MIB


def test_a_mirror_on_its_own_goes_on_after_a_kill(in_memory: Path, tell: Callable[[str], None]) -> None:
    source, target = in_memory / "source", in_memory / "copy.vhdx"
    lot = Random(SEED)
    source.write_bytes(lot.randbytes(6 * MIB))
    words: list[str | Path] = ["mirror", "-q", "--resume", "-f", "raw", "-O", "vhdx", source, target]
    settings = {"vblk.jobs.resumption.PERIOD": 0.0005, "vblk.jobs.mirror.PIECE": MIB // 4}
    went_on = kills = 0
    with Killer(settings, ["vblk.cli.mirror"]) as killer:
        status, calls = killer.call(words)
        assert status == 0
        while kills < KILLS:
            target.unlink()
            if killer.call(words, lot.randrange(calls // 3, calls))[0] == 0:
                continue  # it needed fewer calls this time
            kills += 1
            journal = in_memory / ".copy.vhdx.vblk-journal"
            went_on += journal.exists() and journal.read_bytes().count(b"\n") > 1
            assert killer.call(words, -1)[0] == 0
            assert sorted(os.listdir(in_memory)) == ["copy.vhdx", "source"]
            good("compare", "-q", "-f", "raw", "-F", "vhdx", source, target)
    tell(f"{kills} mirrors alone killed with SIGKILL, all resumed to the right end; {went_on} went on")


@pytest.fixture
def daemon(tmp_path: Path, disk: Path) -> Generator[Talk]:
    """A daemon with the disk, and a monitor for others."""
    monitor = ("--chardev", "socket,id=s,path=qmp.sock,server=on,wait=off", "--monitor", "s")
    with Talk(OURS, *monitor, folder=tmp_path) as talk:
        talk.begin()
        talk.call(
            "blockdev-add", driver="raw", node_name="disk", file={"driver": "file", "filename": str(disk)}
        )
        yield talk


def test_a_disk_of_a_daemon_is_mirrored_and_its_users_are_moved(
    tmp_path: Path, disk: Path, daemon: Talk
) -> None:
    daemon.call("nbd-server-start", addr={"type": "unix", "data": {"path": str(tmp_path / "nbd.sock")}})
    daemon.call("block-export-add", type="nbd", id="e", node_name="disk", writable=True)
    target = tmp_path / "copy.vhdx"
    good("mirror", "--daemon", tmp_path / "qmp.sock", "-O", "vhdx", "--copy-mode", "write-blocking",
         "--converge", "30", "--pivot", "disk", target)  # fmt: skip
    (export,) = daemon.call("query-block-exports")
    assert export["node-name"] != "disk"
    assert good("jobs", tmp_path / "qmp.sock") == "No active jobs\n"
    assert daemon.end() == 0
    good("compare", "-q", "-f", "raw", "-F", "vhdx", disk, target)


def test_without_pivot_the_job_stays_ready_and_is_shown(tmp_path: Path, daemon: Talk) -> None:
    socket = tmp_path / "qmp.sock"
    (tmp_path / "copy").write_bytes(bytes(SIZE))
    file = {"driver": "file", "filename": str(tmp_path / "copy")}
    daemon.call("blockdev-add", driver="raw", node_name="target", file=file)
    good("mirror", "--daemon", socket, "--job-id", "m", "disk", "target")
    head, line = good("jobs", socket).splitlines()
    assert head.split() == ["ID", "TYPE", "STATUS", "DONE", "LENGTH", "RATE", "LEFT", "DIRTY", "REASON"]
    assert line.startswith("m   mirror  ready   4 MiB (100.0 %)  4 MiB")
    (job,) = json.loads(good("jobs", "--json", socket))
    assert (job["offset"], job["length"], job["dirty-bytes"], job["holds-users"]) == (SIZE, SIZE, 0, False)
    daemon.call("block-job-cancel", device="m")


def killed(daemon: Talk) -> None:
    daemon.process.kill()
    daemon.process.wait()


@pytest.fixture
def begun(tmp_path: Path, disk: Path, daemon: Talk) -> Path:
    """Return the target of a mirror whose daemon was killed when it was ready."""
    target = tmp_path / "copy.vhdx"
    good("mirror", "--daemon", tmp_path / "qmp.sock", "--resume", "-O", "vhdx", "disk", target)
    killed(daemon)
    (tmp_path / "qmp.sock").unlink()
    assert (tmp_path / ".copy.vhdx.vblk-journal").exists()
    return target


@contextmanager
def another(folder: Path, disk: Path) -> Generator[Talk]:
    """Start a daemon with the disk after the first has died."""
    monitor = ("--chardev", "socket,id=s,path=qmp.sock,server=on,wait=off", "--monitor", "s")
    with Talk(OURS, *monitor, folder=folder) as talk:
        talk.begin()
        file = {"driver": "file", "filename": str(disk)}
        talk.call("blockdev-add", driver="raw", node_name="disk", file=file)
        yield talk


def test_a_mirror_whose_daemon_died_goes_on_in_another(tmp_path: Path, disk: Path, begun: Path) -> None:
    inode = begun.stat().st_ino
    with another(tmp_path, disk) as daemon:
        good("mirror", "--daemon", tmp_path / "qmp.sock", "--resume", "-O", "vhdx", "--verify",
             "--pivot", "disk", begun)  # fmt: skip
        assert daemon.end() == 0
    good("compare", "-q", "-f", "raw", "-F", "vhdx", disk, begun)
    assert begun.stat().st_ino == inode
    assert not (tmp_path / ".copy.vhdx.vblk-journal").exists()


def test_a_disk_that_somebody_wrote_to_after_the_death_is_refused(
    tmp_path: Path, disk: Path, begun: Path
) -> None:
    shutil.copy(disk, tmp_path / "before")
    with disk.open("r+b") as file:
        file.write(b"changed")
    with another(tmp_path, disk) as daemon:
        outcome = call("mirror", "--daemon", tmp_path / "qmp.sock", "--resume", "-O", "vhdx", "disk", begun)
        assert outcome.status == 1
        assert f"'{disk}' has changed since the job was begun; remove it to begin anew" in outcome.err
        assert daemon.call("query-block-jobs") == []
        assert daemon.end() == 0
    good("compare", "-q", "-f", "raw", "-F", "vhdx", tmp_path / "before", begun)


def test_a_refusal_of_the_daemon_is_told_in_its_words(tmp_path: Path, daemon: Talk) -> None:
    outcome = call("mirror", "--daemon", tmp_path / "qmp.sock", "nobody", "disk")
    assert outcome.status == 1
    assert outcome.err == "vblk: Cannot find device='nobody' nor node-name='nobody'\n"
    outcome = call("mirror", "--daemon", tmp_path / "qmp.sock", "-n", "disk", "disk")
    assert "is a node of the daemon" in outcome.err


@pytest.mark.interop
def test_jobs_of_qemus_daemon_are_shown_too(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "copy").write_bytes(bytes(SIZE))
    monitor = ("--chardev", "socket,id=s,path=qmp.sock,server=on,wait=off", "--monitor", "s")
    with Talk(QEMU, *monitor, folder=tmp_path) as talk:
        talk.begin()
        for name, path in (("disk", disk), ("copy", tmp_path / "copy")):
            file = {"driver": "file", "filename": str(path)}
            talk.call("blockdev-add", driver="raw", node_name=name, file=file)
        talk.call("blockdev-mirror", job_id="m", device="disk", target="copy", sync="full", speed=1 << 16)
        (line,) = good("jobs", tmp_path / "qmp.sock").splitlines()[1:]
        assert line.startswith("m   mirror  running")
