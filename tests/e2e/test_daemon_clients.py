"""Clients of every kind of badness: the daemon goes on serving the others, and leaks nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.command_line import call
from tests.support.qmp import OURS

CONNECTS = 1000


class Serving:
    """A daemon of its own, with its monitor on a socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "m.sock"
        options = ("--chardev", f"socket,id=m,path={self.path},server=on,wait=off", "--monitor", "m")
        self.process = subprocess.Popen(
            [*OURS, "--blockdev", "null-co,node-name=n", *options, "--pidfile", str(folder / "pid")],
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (folder / "pid").exists():
            assert self.process.poll() is None

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.path))
        peer.settimeout(30)
        return peer

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self) -> int:
        """Return the daemon's memory in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def answers(self) -> bool:
        """Tell whether a new client is served."""
        with self.connect() as peer, peer.makefile("rb") as lines:
            lines.readline()
            peer.sendall(b'{"execute": "qmp_capabilities"}{"execute": "query-named-block-nodes"}')
            return lines.readline() == b'{"return": {}}\r\n' and b'"node-name": "n"' in lines.readline()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    place = Serving(tmp_path)
    try:
        yield place
        place.process.send_signal(signal.SIGTERM)
        _, said = place.process.communicate(timeout=30)
        assert (place.process.returncode, said) == (0, "")
    finally:
        place.process.kill()
        place.process.wait()


def test_a_thousand_connects_leave_nothing(serving: Serving) -> None:
    assert serving.answers()
    for _ in range(100):
        serving.connect().close()
    assert serving.answers()
    descriptors, memory = serving.descriptors(), serving.memory()
    texts = (
        b"",
        b'{"execute"',
        b'{"execute": "qmp_capabilities"}',
        b"[" * 200,
        b'"' + b"x" * 5000,
        b"\xff\0nonsense",
    )
    for number in range(CONNECTS):
        with serving.connect() as peer:
            peer.sendall(texts[number % len(texts)])
    assert serving.answers()
    assert serving.descriptors() <= descriptors + 1
    assert serving.memory() < memory + 4096


def test_clients_that_say_nothing_are_in_nobodys_way(serving: Serving) -> None:
    silent = [serving.connect() for _ in range(200)]
    assert serving.answers()
    for peer in silent:
        peer.close()
    assert serving.answers()


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'"' + b"\\u0041" * 400_000,
        b"1" * 1_000_000,
        bytes(range(256)) * 2000,
    ],
    ids=["deep lists", "deep objects", "a long string", "a long number", "every byte"],
)
def test_garbage_is_answered_or_ignored_and_the_daemon_goes_on(serving: Serving, text: bytes) -> None:
    with serving.connect() as peer, peer.makefile("rb") as lines:
        lines.readline()
        peer.settimeout(0.5)
        with suppress(TimeoutError):  # it does not read on while its answers are not taken
            peer.sendall(text)
        assert serving.answers()
    assert serving.answers()
    assert serving.memory() < 400 << 10


def test_the_program_for_people_asks_and_answers(serving: Serving) -> None:
    outcome = call("monitor", serving.path, "-c", "info block", "-c", '{"execute": "query-jobs", "id": 1}')
    assert outcome.status == 0
    first, second, reply = outcome.out.splitlines()
    assert first == "n: null-co:// (null-co)"
    assert second.strip() == "Cache mode:       writeback"
    assert json.loads(reply) == {"return": [], "id": 1}
    assert call("monitor", serving.path, "-c", "nonsense").status == 1
    assert "Failed to connect" in call("monitor", str(serving.path) + "x").err


def test_the_program_for_people_takes_commands_from_a_pipe(serving: Serving) -> None:
    typed = subprocess.run(
        [sys.executable, "-c", "from vblk.cli.main import run; run()", "monitor", serving.path],
        input="info block-jobs\n\nhelp block_resize\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (typed.returncode, typed.stderr) == (0, "")
    assert typed.stdout == "No active jobs\nblock_resize device size -- resize a block image\n"


def test_a_person_at_a_terminal_has_completion_and_a_history(serving: Serving, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    person = subprocess.Popen(
        [sys.executable, "-c", "from vblk.cli.main import run; run()", "monitor", serving.path],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb", "INPUTRC": "/dev/null"},
    )
    os.close(theirs)
    seen = b""

    def until(mark: bytes) -> None:
        nonlocal seen
        while mark not in seen:
            seen += os.read(ours, 4096)
        seen = seen.partition(mark)[2]

    try:
        until(b"(vblk) ")
        os.write(ours, b"info block-j\t\n")
        until(b"info block-jobs")
        until(b"No active jobs")
        until(b"(vblk) ")
        os.write(ours, b"\x04")
        assert person.wait(20) == 0
    finally:
        person.kill()
        person.wait()
        os.close(ours)
    history = tmp_path / "vblk" / "monitor_history"
    assert history.read_text().split() == ["info", "block-jobs"]
    assert history.stat().st_mode & 0o777 == 0o600
