"""Running the command line: in this process for its words, in its own for its signals.

Owns: the call, what was written, and the exit status.
"""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from vblk.cli.main import run_program

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """What a call came to."""

    status: int
    out: str
    err: str


def call(*words: str | Path, program: str = "vblk") -> Outcome:
    """Run a call in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_program(program, [str(word) for word in words])
    return Outcome(status, out.getvalue(), err.getvalue())


def good(*words: str | Path, program: str = "vblk") -> str:
    """Run a call that has to succeed without a word on standard error; return its output."""
    outcome = call(*words, program=program)
    assert (outcome.status, outcome.err) == (0, "")
    return outcome.out


def start(*words: str | Path, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    """Start a call as a process of its own."""
    code = "from vblk.cli.main import run; run()"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env=environment,
    )
