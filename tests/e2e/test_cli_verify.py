"""`--verify` as a user meets it: what it says, and what becomes of a copy that differs."""

import random
from pathlib import Path

import pytest

from tests.support.chain_lab import make_chain
from tests.support.command_line import call, good
from tests.support.nbd import nbdkit
from tests.support.qmp import OURS, Talk

MIB = 1 << 20
SIZE = 4 * MIB
MONITOR = ("--chardev", "socket,id=s,path=qmp.sock,server=on,wait=off", "--monitor", "s")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk with something on it."""
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(MIB))
    with path.open("r+b") as file:
        file.truncate(SIZE)
    return path


@pytest.mark.parametrize("verb", ["convert", "mirror"])
@pytest.mark.parametrize("form", ["raw", "vhdx", "qcow2"])
def test_a_copy_that_is_right_is_told_of(tmp_path: Path, disk: Path, verb: str, form: str) -> None:
    told = good(verb, "--verify", "-f", "raw", "-O", form, disk, tmp_path / "copy")
    assert told.startswith("verified 1 MiB")
    assert good(verb, "-q", "--verify", "-f", "raw", "-O", form, disk, tmp_path / "quiet") == ""
    good("compare", "-q", "-f", "raw", "-F", form, disk, tmp_path / "copy")


def test_sources_behind_each_other_are_compared_where_they_are(tmp_path: Path, disk: Path) -> None:
    good("convert", "-q", "-f", "raw", "-O", "qcow2", disk, tmp_path / "a")
    told = good(
        "convert", "--verify", "-f", "qcow2", "-O", "vhdx", tmp_path / "a", tmp_path / "a", tmp_path / "b"
    )
    assert told.startswith("verified 2 MiB")


@pytest.mark.interop
@pytest.mark.parametrize("verb", ["convert", "mirror"])
def test_a_server_that_forgets_what_it_was_given_is_found_out(tmp_path: Path, disk: Path, verb: str) -> None:
    with nbdkit(tmp_path, "null", f"{SIZE}") as server:
        outcome = call(verb, "--verify", "-n", "-f", "raw", "-O", "raw", disk, server.uri())
    assert outcome.status == 1
    assert "the copy differs from its source (offset 0x0)" in outcome.err


def test_what_cannot_be_read_cannot_be_compared(disk: Path) -> None:
    outcome = call("convert", "--verify", "--salvage", disk, "copy")
    assert outcome.status == 1
    assert "--verify and --salvage do not go together" in outcome.err


def test_a_daemon_verifies_a_mirror_before_it_is_ready(tmp_path: Path, disk: Path) -> None:
    with Talk(OURS, *MONITOR, folder=tmp_path) as talk:
        talk.begin()
        file = {"driver": "file", "filename": str(disk)}
        talk.call("blockdev-add", driver="raw", node_name="disk", file=file)
        words = ("--daemon", tmp_path / "qmp.sock", "-O", "vhdx", "--pivot", "disk", tmp_path / "copy.vhdx")
        assert good("mirror", "--verify", *words).startswith("verified ")
        assert talk.end() == 0
    good("compare", "-q", "-f", "raw", "-F", "vhdx", disk, tmp_path / "copy.vhdx")


def test_a_backup_of_a_daemon_is_verified_unless_it_has_no_end(tmp_path: Path, disk: Path) -> None:
    with Talk(OURS, folder=tmp_path) as talk:
        talk.begin()
        file = {"driver": "file", "filename": str(disk)}
        talk.call("blockdev-add", driver="raw", node_name="disk", file=file)
        backup = {"job_id": "b", "device": "disk", "target": str(tmp_path / "copy"), "format": "raw"}
        assert "which sync mode 'none' does not" in talk.refused(
            "drive-backup", **backup, sync="none", verify=True
        )
        talk.call("drive-backup", **backup, sync="full", verify=True, auto_dismiss=False)
        while talk.call("query-jobs")[0]["status"] != "concluded":
            pass
        (job,) = talk.call("query-job-progress")
        assert "error" not in job
        assert job["verified-bytes"] == SIZE
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("words", [["-b", "0.vhdx"], []])
def test_an_image_is_committed_and_verified(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = make_chain(tmp_path, ["vhdx"] * 3)
    assert good("commit", "--verify", *words, "2.vhdx") == "Image committed, and verified.\n"
    good("convert", "-O", "raw", "2.vhdx" if not words else "0.vhdx", "read")
    assert (tmp_path / "read").read_bytes() == content


def test_checkpoints_are_merged_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = make_chain(tmp_path, ["vhdx"] * 3)
    told = good("merge", "--verify", "--into", "0.vhdx", "2.vhdx")
    assert told.endswith("0.vhdx', and verified.\n")
    good("convert", "-O", "raw", "0.vhdx", "read")
    assert (tmp_path / "read").read_bytes() == content


def test_layers_of_a_daemon_are_committed_and_verified(tmp_path: Path) -> None:
    content = make_chain(tmp_path, ["raw", "qcow2", "qcow2"])
    with Talk(OURS, *MONITOR, folder=tmp_path) as talk:
        talk.begin()
        talk.call(
            "blockdev-add", driver="qcow2", node_name="disk", file={"driver": "file", "filename": "2.qcow2"}
        )
        told = good("commit", "--live", tmp_path / "qmp.sock", "--verify", "disk")
        assert told == "Image committed, and verified.\n"
        talk.end()
    assert (tmp_path / "0.raw").read_bytes() == content
