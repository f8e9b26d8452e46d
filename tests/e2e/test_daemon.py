"""`vblk daemon` as a process: its options, its monitors, and its end."""

import json
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

from tests.support.command_line import call, start
from tests.support.qmp import OURS, Talk


def test_a_whole_session_on_standard_input_and_output(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(1 << 20))
    with Talk(folder=tmp_path) as talk:
        assert json.loads(talk.greeting)["QMP"]["capabilities"] == ["oob"]
        assert "Expecting capabilities negotiation" in talk.refused("query-version")
        talk.begin()
        talk.call("blockdev-add", driver="raw", node_name="n", file={"driver": "file", "filename": "a.raw"})
        (node,) = [each for each in talk.call("query-named-block-nodes") if each["node-name"] == "n"]
        assert (node["drv"], node["image"]["virtual-size"]) == ("raw", 1 << 20)
        talk.call("block_resize", node_name="n", size=2 << 20)
        talk.call("blockdev-del", node_name="n")
        assert talk.refused("blockdev-del", node_name="n") == "Failed to find node with node-name='n'"
        assert talk.end() == 0
    assert (tmp_path / "a.raw").stat().st_size == 2 << 20


def test_an_export_is_served_and_its_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"vblk" * 256)
    options = (
        *("--blockdev", "driver=raw,node-name=n,file.driver=file,file.filename=a.raw"),
        *("--nbd-server", "addr.type=unix,addr.path=nbd.sock"),
        *("--export", "nbd,id=e,node-name=n,name=disk"),
    )
    with Talk(OURS, *options, folder=tmp_path) as talk:
        talk.begin()
        assert talk.call("query-block-exports") == [
            {"node-name": "n", "shutting-down": False, "type": "nbd", "id": "e"}
        ]
        name = f"nbd+unix:///disk?socket={tmp_path / 'nbd.sock'}"
        compared = call("compare", "-U", "-f", "raw", "-F", "raw", tmp_path / "a.raw", name)
        assert compared.status == 0, compared.err
        assert talk.refused("blockdev-del", node_name="n") == "Node n is in use"
        talk.call("block-export-del", id="e")
        assert [(event["event"], event["data"]) for event in talk.events] == [
            ("BLOCK_EXPORT_DELETED", {"id": "e"})
        ]
        assert talk.end() == 0
    assert not (tmp_path / "nbd.sock").exists()


def connect(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(20)
    peer.connect(str(path))
    return peer


def in_background(folder: Path, *options: str) -> int:
    """Start a daemon in the background, with a monitor on a socket; return its process id."""
    started = subprocess.run(
        [
            *OURS,
            *options,
            *("--chardev", "socket,id=m,path=m.sock,server=on,wait=off", "--monitor", "m"),
            *("--pidfile", "pid", "--log", "log", "--daemonize"),
        ],
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (started.returncode, started.stderr) == (0, b"")
    return int((folder / "pid").read_text())


def gone(process: int) -> bool:
    """Wait until a process that is not our child has ended."""
    watched = os.pidfd_open(process)
    try:
        import select

        return bool(select.select([watched], [], [], 20)[0])
    finally:
        os.close(watched)


def test_a_daemon_in_the_background_ends_cleanly_when_it_is_told_to(tmp_path: Path) -> None:
    process = in_background(tmp_path, "--blockdev", "null-co,node-name=n,size=1048576")
    try:
        mode = (tmp_path / "m.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        with connect(tmp_path / "m.sock") as first, connect(tmp_path / "m.sock") as second:
            assert first.recv(4096).startswith(b'{"QMP"')
            assert second.recv(4096).startswith(b'{"QMP"')
    finally:
        os.kill(process, signal.SIGTERM)
    assert gone(process)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log"]
    said = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert said == ["node-added"]


def test_options_take_effect_in_order_and_the_first_wrong_one_ends_it(tmp_path: Path) -> None:
    outcome = call(
        "daemon", "--blockdev", "null-co,node-name=a", "--blockdev", "null-co,node-name=a", "--foo"
    )
    assert (outcome.status, outcome.err) == (1, "vblk: unrecognized option '--foo'\n")
    outcome = call("daemon", "--blockdev", "null-co,node-name=a", "--blockdev", "null-co,node-name=a")
    assert (outcome.status, outcome.err) == (
        1,
        "vblk: --blockdev null-co,node-name=a: Duplicate nodes with node-name='a'\n",
    )


def test_a_monitor_on_tcp_has_to_be_asked_for_twice() -> None:
    outcome = call("daemon", "--chardev", "socket,id=m,host=127.0.0.1,port=0,server=on,wait=off")
    assert outcome.status == 1
    assert "or say --allow-tcp-monitor too" in outcome.err


def test_ctrl_c_ends_a_daemon_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    process = start("daemon", "--chardev", f"socket,id=m,path={path},server=on,wait=on", "--monitor", "m")
    while not path.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert not path.exists()
