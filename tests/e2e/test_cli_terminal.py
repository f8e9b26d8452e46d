"""What a person at a terminal sees: tables, trees and a bar instead of lines for programs."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import REPOSITORY
from tests.support.qmp import OURS, Talk
from tests.support.vhdx.chain import Chain

MIB = 1 << 20


def on_terminal(
    *words: str | Path, seen: str = "", react: Callable[[], object] | None = None, **variables: str
) -> str:
    """Run a call on a pseudo terminal and return what it got; `react` once a text was `seen` there."""
    code = "from vblk.cli.main import run; run()"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "TERM": "xterm", **variables}
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    parts: list[bytes] = []
    try:
        while part := os.read(leader, 65536):
            parts.append(part)
            if react is not None and seen.encode() in b"".join(parts):
                react()
                react = None
    except OSError:
        pass  # a terminal without a writer ends with EIO
    finally:
        os.close(leader)
    assert process.wait() == 0
    return b"".join(parts).decode(errors="replace")


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.chdir(tmp_path)
    made = Chain(Path())
    made.base([(0, 3 * MIB)], size=16 * MIB)
    made.child([(MIB, 512)])
    return made


def test_info_is_a_coloured_table(chain: Chain) -> None:
    text = on_terminal("info", "base.vhdx")
    assert "\x1b[" in text
    assert "file format: vhdx" not in text
    assert "dynamic" in text


def test_no_color_is_honoured(chain: Chain) -> None:
    assert "\x1b[1;3" not in on_terminal("info", "base.vhdx", NO_COLOR="1")


def test_a_dumb_terminal_gets_plain_lines(chain: Chain) -> None:
    text = on_terminal("info", "base.vhdx", TERM="dumb")
    assert text.startswith("image: base.vhdx\r\nfile format: vhdx\r\n")


def test_chain_is_a_tree(chain: Chain) -> None:
    assert "└── " in on_terminal("chain", "child1.vhdx")


def test_convert_shows_a_bar_that_ends_full(chain: Chain) -> None:
    text = on_terminal("convert", "-p", "child1.vhdx", "flat")
    assert "100.0 %" in text
    assert "/100%)" not in text


def test_names_with_brackets_are_not_taken_for_markup(chain: Chain) -> None:
    Path("[red]x[").write_bytes(bytes(512))
    assert "[red]x[" in on_terminal("info", "[red]x[", NO_COLOR="1")


def test_the_table_of_jobs_lives_until_no_job_is_left(tmp_path: Path) -> None:
    monitor = ("--chardev", "socket,id=s,path=qmp.sock,server=on,wait=off", "--monitor", "s")
    with Talk(OURS, *monitor, folder=tmp_path) as talk:
        talk.begin()
        for name in ("disk", "target"):
            talk.call("blockdev-add", driver="memory", node_name=name, size=MIB)
        talk.call("blockdev-mirror", job_id="m1", device="disk", target="target", sync="full")
        text = on_terminal(
            "jobs",
            tmp_path / "qmp.sock",
            seen="mirror",
            react=lambda: talk.call("job-cancel", id="m1"),
            COLUMNS="120",
        )
    assert "m1" in text
    assert "1 MiB (100.0 %)" in text
    assert text.rstrip().endswith("No active jobs")
