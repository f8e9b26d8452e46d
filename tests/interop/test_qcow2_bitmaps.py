"""Bitmaps in qcow2 images: QEMU reads ours, we read QEMU's, and both say the same of them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import call, good
from tests.support.qmp import OURS, QEMU, Talk

pytestmark = pytest.mark.interop

MIB = 1 << 20
NODE = {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": "disk.qcow2"}}


def qemu(*arguments: str | Path, program: str = "qemu-img") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=100)


def worked(*arguments: str | Path, program: str = "qemu-img") -> str:
    ran = qemu(*arguments, program=program)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def dirty(path: Path, name: str) -> str:
    """Return what QEMU says, by its own NBD server, that a bitmap marks."""
    options = ("driver=nbd,export=,server.type=unix,server.path=", f"x-dirty-bitmap=qemu:dirty-bitmap:{name}")
    socket = path.parent / f"{path.name}.{name}.sock"
    with subprocess.Popen(["qemu-nbd", "-r", "-f", "qcow2", "-B", name, "-k", socket, path]) as server:
        while not socket.exists():
            assert server.poll() is None
        return worked("map", "--output=json", "--image-opts", f"{options[0]}{socket},{options[1]}")


SCRIPT = (
    ["--add", "-g", "4096", "disk.qcow2", "one"],
    ["--add", "--disable", "disk.qcow2", "two"],
    ["--add", "--remove", "disk.qcow2", "three"],
    ["--merge", "one", "--merge", "two", "--enable", "disk.qcow2", "two"],
    ["--clear", "disk.qcow2", "one"],
    ["--add", "disk.qcow2", "one"],
    ["--add", "disk.qcow2", ""],
    ["disk.qcow2", "one"],
    ["--add", "disk.qcow2"],
    ["--merge", "none", "disk.qcow2", "one"],
    ["--remove", "disk.qcow2", "none"],
    ["--add", "-g", "3", "disk.qcow2", "four"],
    ["-g", "4096", "--clear", "disk.qcow2", "one"],
    ["--add", "-b", "disk.qcow2", "disk.qcow2", "four"],
    ["--add", "-F", "qcow2", "disk.qcow2", "four"],
    ["--merge", "one", "-b", "none.qcow2", "disk.qcow2", "two"],
)


def test_the_verb_does_and_says_what_qemu_img_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[tuple[int, str]]] = []
    shown: list[str] = []
    for ours in (True, False):
        folder = tmp_path / str(ours)
        folder.mkdir()
        monkeypatch.chdir(folder)
        good("create", "-q", "-f", "qcow2", "disk.qcow2", "40M")
        steps: list[tuple[int, str]] = []
        for words in SCRIPT:
            if ours:
                outcome = call("bitmap", *words, program="qemu-img")
                steps.append((outcome.status, outcome.err))
            else:
                ran = qemu("bitmap", *words)
                steps.append((ran.returncode, ran.stderr))
        told.append(steps)
        worked("check", "disk.qcow2")
        shown.append(worked("info", "--output=json", "disk.qcow2").split('"actual-size"')[0])
        shown[-1] += worked("info", "disk.qcow2").partition("Format specific")[2]
        assert (
            good("info", "disk.qcow2").partition("Format specific")[2]
            == (worked("info", "disk.qcow2").partition("Format specific")[2])
        )
    assert told[0] == told[1]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("writer", [OURS, QEMU])
def test_marks_of_either_are_read_by_the_other(tmp_path: Path, writer: tuple[str, ...]) -> None:
    disk = tmp_path / "disk.qcow2"
    good("create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", disk, "40M")
    with Talk(writer, folder=tmp_path) as talk:
        talk.call("qmp_capabilities")
        talk.call("blockdev-add", **NODE)
        for name, granularity in (("fine", 512), ("coarse", MIB)):
            talk.call(
                "block-dirty-bitmap-add", node="disk", name=name, granularity=granularity, persistent=True
            )
        talk.call("nbd-server-start", addr={"type": "unix", "data": {"path": "n.sock"}})
        talk.call("block-export-add", type="nbd", id="e", node_name="disk", name="", writable=True)
        for request in ("write 0 1k", "write 3M 64k", "write -z 10M 1M", "write 41942528 512"):
            worked(
                "-f", "raw", "-c", request, f"nbd+unix:///?socket={tmp_path / 'n.sock'}", program="qemu-io"
            )
        talk.call("quit")
        talk.process.wait(60)
    worked("check", disk)
    assert "No errors" in good("check", disk)
    for name in ("fine", "coarse"):
        theirs = dirty(disk, name)
        socket = tmp_path / f"ours.{name}"
        with subprocess.Popen(
            [*OURS[:-1], "nbd", "-r", "-f", "qcow2", "-B", name, "-k", str(socket), str(disk)]
        ) as server:
            while not socket.exists():
                assert server.poll() is None
            options = f"driver=nbd,export=,server.type=unix,server.path={socket}"
            ours = worked(
                "map", "--output=json", "--image-opts", f"{options},x-dirty-bitmap=qemu:dirty-bitmap:{name}"
            )
        assert ours == theirs
        assert '"data": false' in theirs


def answers(program: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """Ask for bitmaps that can and cannot be; the image has one that is in use."""
    folder.mkdir()
    worked("create", "-q", "-f", "qcow2", folder / "disk.qcow2", "4M")
    with Talk(program, folder=folder) as talk:
        bitmap = {"node": "disk", "name": "b"}
        said: list[dict[str, Any]] = []

        def ask(command: str, **arguments: object) -> None:
            said.append(talk.raw(command, **arguments))

        talk.call("qmp_capabilities")
        talk.call("blockdev-add", **NODE)
        ask("block-dirty-bitmap-add", **bitmap, persistent=True, disabled=True)
        ask("block-dirty-bitmap-add", **bitmap, persistent=True)
        ask("block-dirty-bitmap-add", node="disk", name="d", granularity=65536)
        ask("block-dirty-bitmap-merge", node="disk", target="b", bitmaps=["d", {"node": "disk", "name": "d"}])
        ask("block-dirty-bitmap-merge", node="disk", target="b", bitmaps=["e"])
        ask("block-dirty-bitmap-enable", **bitmap)
        ask("query-named-block-nodes", flat=True)
        talk.call("blockdev-reopen", options=[{**NODE, "read-only": True}])
        for command in ("clear", "enable", "disable", "remove"):
            ask(f"block-dirty-bitmap-{command}", **bitmap)
        ask("block-dirty-bitmap-add", node="disk", name="f", persistent=True)
        for each in said:
            if isinstance(each.get("return"), list):
                each["return"] = [node.get("dirty-bitmaps") for node in each["return"]]
        return said


def test_commands_on_bitmaps_answer_as_qemu_s_do(tmp_path: Path) -> None:
    assert answers(OURS, tmp_path / "ours") == answers(QEMU, tmp_path / "qemu")


@pytest.mark.parametrize("killed", [OURS, QEMU])
def test_what_a_killed_daemon_left_is_inconsistent_for_both(tmp_path: Path, killed: tuple[str, ...]) -> None:
    disk = tmp_path / "disk.qcow2"
    worked("create", "-q", "-f", "qcow2", disk, "4M")
    worked("bitmap", "--add", disk, "b")
    with Talk(killed, folder=tmp_path) as talk:
        talk.call("qmp_capabilities")
        talk.call("blockdev-add", **NODE)
    said = "Operation clear on bitmap b failed: Bitmap 'b' is inconsistent and cannot be used\n"
    ran = qemu("bitmap", "--clear", disk, "b")
    assert (ran.returncode, said in ran.stderr) == (1, True)
    outcome = call("bitmap", "--clear", disk, "b")
    assert (outcome.status, said in outcome.err) == (1, True)
    good("bitmap", "--remove", disk, "b")
    worked("check", disk)
