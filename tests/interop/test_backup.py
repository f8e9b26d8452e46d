"""Backups beside QEMU's: the same events for the same script; fleecing by NBD; a daemon that is killed."""

import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import good
from tests.support.qmp import OURS, QEMU, Talk

pytestmark = pytest.mark.interop

MIB = 1 << 20
SIZE = 8 * MIB


def file_node(name: str, filename: str, driver: str = "raw", **options: Any) -> dict[str, Any]:
    file = {"driver": "file", "filename": filename}
    return {"driver": driver, "node-name": name, "file": file, **options}


def until(talk: Talk, event: str, **data: Any) -> dict[str, Any]:
    """Wait for an event with these data."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for told in talk.events:
            if told["event"] == event and data.items() <= told["data"].items():
                return told
        talk.call("query-version")
    raise AssertionError(f"{event} {data} was not told: {talk.events}")


def shown(events: list[dict[str, Any]]) -> list[Any]:
    """Return events without their times, and without the pauses in which QEMU drains a running job."""
    told = [(each["event"], each["data"]) for each in events]
    states = [each["data"].get("status") for each in events]
    for at in range(len(told) - 1, 1, -1):
        if states[at - 2 : at + 1] == ["running", "paused", "running"]:
            del told[at - 1 : at + 1]
    return told


def run(talk: Talk, command: str = "blockdev-backup", /, **arguments: Any) -> list[Any]:
    """Carry out a backup to its end; return its answer and its events, without their times."""
    talk.events.clear()
    reply = talk.raw(command, **arguments)
    if "return" in reply:
        until(talk, "JOB_STATUS_CHANGE", status="null")
    return [reply, *shown(talk.events)]


def script(program: tuple[str, ...], folder: Path) -> list[Any]:
    """Back up a disk in many ways, wrong ones among them."""
    folder.mkdir()
    (folder / "disk").write_bytes(random.Random(1).randbytes(SIZE))
    (folder / "base").write_bytes(bytes(SIZE))
    for name in ("target", "bad"):
        (folder / name).write_bytes(bytes(SIZE))
    for name, backing in (("top.qcow2", ("-b", "base", "-F", "raw")), ("t.qcow2", ())):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *backing, name, str(SIZE)], check=True, cwd=folder
        )
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write 1M 192k", "top.qcow2"],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    told: list[Any] = []
    with Talk(program, folder=folder) as talk:
        talk.call("qmp_capabilities")
        talk.call("blockdev-add", **file_node("disk", "disk"))
        talk.call("blockdev-add", **file_node("target", "target"))
        talk.call("blockdev-add", **file_node("top", "top.qcow2", "qcow2"))
        talk.call("blockdev-add", **file_node("t", "t.qcow2", "qcow2"))
        rule = {"event": "pwritev", "errno": 28}
        image = {"driver": "file", "filename": "bad"}
        talk.call(
            "blockdev-add",
            driver="raw",
            node_name="bad",
            file={"driver": "blkdebug", "image": image, "inject-error": [rule]},
        )
        talk.call("block-dirty-bitmap-add", node="disk", name="b", granularity=65536)
        backup: dict[str, Any] = {"job_id": "j", "device": "disk", "target": "target"}
        told.append(run(talk, **backup, sync="full"))
        told.append(run(talk, **{**backup, "device": "top", "target": "t"}, sync="top"))
        told.append(run(talk, **{**backup, "target": "bad"}, sync="full"))
        for sync in ("incremental", "bitmap", "full", "top", "none"):
            for mode in (None, "on-success", "never", "always"):
                for bitmap in (None, "b", "c"):
                    more = {"bitmap": bitmap, "bitmap_mode": mode, "sync": sync}
                    if sync == "none" and bitmap is None and mode is None:
                        continue
                    told.append(run(talk, **backup, **{k: v for k, v in more.items() if v is not None}))
        wrong: tuple[dict[str, str], ...] = (
            {"target": "disk"},
            {"target": "none"},
            {"device": "none"},
            {"job_id": "1"},
            {"filter_node_name": "disk"},
            {"filter_node_name": "1"},
            {"filter_node_name": ""},
        )
        told += [run(talk, **{**backup, **each}, sync="full") for each in wrong]
        talk.events.clear()
        talk.call("blockdev-backup", **backup, sync="none")
        told.append(talk.raw("blockdev-backup", **{**backup, "job_id": "k"}, sync="full"))
        told.append(talk.raw("blockdev-del", node_name="target"))
        told.append(talk.raw("job-pause", id="j"))
        told.append(talk.raw("job-resume", id="j"))
        talk.call("job-cancel", id="j")
        until(talk, "JOB_STATUS_CHANGE", status="null")
        told += [
            (each["event"], each["data"]) for each in talk.events if each["event"] != "JOB_STATUS_CHANGE"
        ]
        talk.call("blockdev-backup", **{**backup, "target": "bad"}, sync="full", on_target_error="enospc")
        until(talk, "BLOCK_JOB_ERROR", action="stop")
        while (job := talk.call("query-block-jobs")[0])["status"] != "paused":
            pass
        told.append({name: job[name] for name in ("io-status", "paused", "type", "device", "len", "offset")})
        talk.events.clear()
        talk.call("job-cancel", id="j")
        until(talk, "JOB_STATUS_CHANGE", status="null")
        actions = [
            {
                "type": "blockdev-backup",
                "data": {"job-id": id, "device": device, "target": goal, "sync": "full"},
            }
            for id, device, goal in (("one", "disk", "target"), ("two", "top", "t"))
        ]
        abort: dict[str, Any] = {"type": "abort", "data": {}}
        # With completion-mode=grouped QEMU 7.2 hangs here.
        told.append(talk.raw("transaction", actions=[*actions, abort]))
        told.append(talk.call("query-jobs"))
    assert (folder / "target").read_bytes() == (folder / "disk").read_bytes()
    return told


def test_the_same_script_gets_the_answers_and_events_of_qemu(tmp_path: Path) -> None:
    ours, theirs = script(OURS, tmp_path / "ours"), script(QEMU, tmp_path / "qemu")
    for mine, right in zip(ours, theirs, strict=True):
        assert mine == right


def test_a_reader_by_nbd_sees_the_instant_while_a_guest_writes(tmp_path: Path) -> None:
    old = random.Random(2).randbytes(SIZE)
    (tmp_path / "disk").write_bytes(old)
    good("create", "-q", "-f", "qcow2", tmp_path / "kept.qcow2", str(SIZE))
    socket = tmp_path / "nbd.sock"
    with Talk(OURS, folder=tmp_path) as talk:
        talk.call("qmp_capabilities")
        talk.call("blockdev-add", **file_node("disk", "disk"))
        talk.call("blockdev-add", **file_node("kept", "kept.qcow2", "qcow2"))
        talk.call("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd.sock"}})
        talk.call("block-export-add", type="nbd", id="guest", node_name="disk", name="guest", writable=True)
        guest = f"nbd+unix:///guest?socket={socket}"
        writing = ["fio", "--name=w", "--ioengine=nbd", f"--uri={guest}", "--rw=randwrite", "--bs=4k"]
        with subprocess.Popen(
            [*writing, "--iodepth=4", "--time_based", "--runtime=100", f"--size={SIZE}"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        ) as fio:
            try:
                (tmp_path / "now").write_bytes(old)
                while (tmp_path / "disk").read_bytes() == old:
                    assert fio.poll() is None
                talk.call(
                    "blockdev-add", driver="copy-before-write", node_name="cbw", file="disk", target="kept"
                )
                talk.call("blockdev-insert", node="disk", filter="cbw")
                talk.call("blockdev-add", driver="snapshot-access", node_name="then", file="cbw")
                talk.call("block-export-add", type="nbd", id="then", node_name="then", name="then")
                reading = [
                    "qemu-img",
                    "convert",
                    "-f",
                    "raw",
                    "-O",
                    "raw",
                    f"nbd+unix:///then?socket={socket}",
                ]
                for name in ("first", "second"):
                    subprocess.run([*reading, name], cwd=tmp_path, check=True)
                assert fio.poll() is None, "the guest wrote all the while"
            finally:
                fio.kill()
        now = (tmp_path / "disk").read_bytes()
        first = (tmp_path / "first").read_bytes()
        assert first == (tmp_path / "second").read_bytes()
        assert first != now
        assert first != old


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_a_daemon_that_is_killed_during_a_backup_leaves_the_source_whole(
    tmp_path: Path, delay: float
) -> None:
    good("create", "-q", "-f", "qcow2", tmp_path / "disk.qcow2", "64M")
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64M", tmp_path / "disk.qcow2"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with Talk(OURS, folder=tmp_path) as talk:
        talk.call("qmp_capabilities")
        talk.call("blockdev-add", **file_node("disk", "disk.qcow2", "qcow2"))
        talk.call("drive-backup", job_id="j", device="disk", target="t.qcow2", sync="full", speed=32 * MIB)
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline:
            talk.call("query-block-jobs")
        os.kill(talk.process.pid, 9)
    checked = subprocess.run(
        ["qemu-img", "check", "disk.qcow2"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "No errors were found" in checked.stdout
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64M", tmp_path / "disk.qcow2"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
