"""The machine by name only that QEMU's block tests get: its drives, what is written to them, its end."""

import subprocess
import sys
from pathlib import Path

from tests.support.command_line import REPOSITORY, call
from tests.support.qmp import Talk

SIZE = 1 << 20
WRITE = (
    '{"execute": "human-monitor-command", "arguments": {"command-line": "qemu-io d \\"write -P 7 0 4k\\""}}'
)


def program(folder: Path) -> str:
    """Install the machine's program."""
    install = [sys.executable, "-m", "tests.machine", "--install", str(folder)]
    subprocess.run(install, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    return str(folder / "qemu-system-x86_64")


def machine(folder: Path, *options: str) -> Talk:
    return Talk(
        (program(folder), "-nodefaults", "-display", "none"),
        *options,
        folder=folder,
        monitor=("-qmp", "stdio"),
    )


def test_a_drive_is_shown_written_exported_and_ejected(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(SIZE))
    with machine(tmp_path, "-drive", "if=none,id=d,file=a.raw,format=raw") as talk:
        talk.begin()
        (drive,) = talk.call("query-block")
        assert (drive["device"], drive["inserted"]["drv"]) == ("d", "raw")
        talk.send(WRITE)
        assert talk.line() == "wrote 4096/4096 bytes at offset 0\n"
        assert talk.line().startswith("4 KiB, 1 ops;")
        assert talk.line() == '{"return": ""}\r\n'
        socket = tmp_path / "nbd.sock"
        talk.call("nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
        talk.call("nbd-server-add", device="d")
        talk.call("eject", device="d")
        assert [event["event"] for event in talk.events] == ["BLOCK_EXPORT_DELETED"]
        assert call("info", f"nbd+unix:///d?socket={socket}").status == 1
        (drive,) = talk.call("query-block")
        assert "inserted" not in drive
        assert talk.end() == 0
        assert talk.events[-1]["event"] == "SHUTDOWN"
    assert (tmp_path / "a.raw").read_bytes() == b"\x07" * 4096 + bytes(SIZE - 4096)


def test_a_drive_that_stays_as_it_is_forgets_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(SIZE))
    with machine(tmp_path, "-drive", "if=virtio,id=d,file=a.raw,format=raw,snapshot=on") as talk:
        talk.begin()
        talk.send(WRITE)
        assert talk.line().startswith("wrote 4096/4096")
        talk.line()
        talk.line()
        assert talk.end() == 0
    assert (tmp_path / "a.raw").read_bytes() == bytes(SIZE)


def test_an_option_that_it_has_not_is_refused(tmp_path: Path) -> None:
    words = [program(tmp_path), "-nodefaults", "-bogus"]
    refused = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "qemu-system-x86_64: -bogus: the machine of these tests has no such option\n"
