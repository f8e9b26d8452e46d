"""`vblk commit --live`: layers of a daemon's disk, while it is in use."""

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
    good("convert", "-U", "-O", "raw", tmp_path / left, tmp_path / "read")
    assert (tmp_path / "read").read_bytes() == content


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
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str) -> None:
    outcome = call("commit", *words)
    assert outcome.status == 1
    assert said in outcome.err
