"""`vblk commit --live`: layers of a daemon's disk, while it is in use."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain_lab import make_chain, names_of
from tests.support.command_line import call, good
from tests.support.qmp import OURS, Talk

NAMES = names_of(["vhdx"] * 3)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """A chain of three; what it shows."""
    return make_chain(tmp_path, ["vhdx"] * 3)


@pytest.fixture
def daemon(tmp_path: Path, content: bytes) -> Generator[Talk]:
    """A daemon with the chain, and a monitor for others."""
    monitor = ("--chardev", "socket,id=s,path=qmp.sock,server=on,wait=off", "--monitor", "s")
    with Talk(OURS, *monitor, folder=tmp_path) as talk:
        talk.begin()
        below: dict[str, Any] = {}
        for number, name in enumerate(NAMES):
            node = {"driver": "vhdx", "node-name": f"n{number}", "file": {"driver": "file", "filename": name}}
            below = node | ({"backing": below} if below else {})
        talk.call("blockdev-add", **below)
        yield talk


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(("words", "left"), [(["--top", "n1", "-b", "n0"], "2.vhdx"), ([], "0.vhdx")])
def test_layers_go_into_the_base(tmp_path: Path, content: bytes, words: list[str], left: str) -> None:
    outcome = call("commit", "--live", tmp_path / "qmp.sock", "--progress", "json", *words, "n2")
    assert (outcome.status, outcome.out) == (0, "Image committed.\n"), outcome.err
    assert '"finished": true' in outcome.err
    assert content_of(tmp_path / left, tmp_path) == content


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(("words", "left"), [(["--top", "n1", "-b", "n0"], [0, 2]), ([], [0])])
def test_with_delete_the_files_of_the_layers_go(tmp_path: Path, words: list[str], left: list[int]) -> None:
    good("commit", "-q", "--live", tmp_path / "qmp.sock", "--delete", *words, "n2")
    assert sorted(path.name for path in tmp_path.glob("*.vhdx")) == [NAMES[number] for number in left]


def test_a_commit_that_was_cancelled_is_resumed_and_what_is_done_is_not_done_again(
    tmp_path: Path, content: bytes, daemon: Talk
) -> None:
    words: list[str | Path] = ["--live", tmp_path / "qmp.sock", "--top", "n1", "-b", "n0", "n2"]
    job = {"job_id": "c", "device": "n2", "top_node": "n1", "base_node": "n0", "resume": True}
    daemon.call("block-commit", **job, speed=1 << 20)
    while not daemon.call("query-block-jobs")[0]["offset"]:
        pass
    daemon.call("job-cancel", id="c")
    while daemon.call("query-jobs"):
        pass
    journal = tmp_path / ".0.vhdx.vblk-journal"
    assert json.loads(journal.read_text().splitlines()[-1])["done"] > 0
    good("commit", "--resume", *words)
    assert not journal.exists()
    assert content_of(tmp_path / "2.vhdx", tmp_path) == content


def content_of(image: Path, folder: Path) -> bytes:
    good("convert", "-U", "-O", "raw", image, folder / "read")
    return (folder / "read").read_bytes()


@pytest.mark.usefixtures("daemon")
def test_what_the_daemon_refuses_is_said(tmp_path: Path) -> None:
    outcome = call("commit", "--live", tmp_path / "qmp.sock", "-b", "n2", "n2")
    assert outcome.status == 1
    assert "cannot commit an image into itself" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--live", "s", "-d", "n"], "-d cannot be used with --live: the images are the daemon's"),
        (["--live", "nobody.sock", "n"], "Failed to connect to 'nobody.sock'"),
        (["--top", "n", "image"], "--top is for a disk in use: --live says whose"),
        (["--delete", "image"], "--delete is for a disk in use: --live says whose"),
        (["--resume", "image"], "--resume is for a disk in use: --live says whose"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str) -> None:
    outcome = call("commit", *words)
    assert outcome.status == 1
    assert said in outcome.err
