"""Calls of the command line that are killed with SIGKILL after so many function calls of their own.

Owns: a process that imports vblk once and forks for every call, and how it is
asked. An instant is counted in calls of Python functions, not in seconds: so a
loaded machine kills at the same places, while threads of the engine may be
anywhere.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Self


class Killer:
    """Makes calls that are killed; use it in `with`.

    `settings` are constants of modules that the calls are to see otherwise, by their full names;
    `modules` are imported before, so that the calls need not.
    """

    module: ClassVar[str] = "tests.support.killed_call"

    def __init__(self, settings: Mapping[str, float] | None = None, modules: Sequence[str] = ()) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, json.dumps(settings or {}), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def call(self, words: list[str | Path], after: int = 0) -> tuple[int, int]:
        """Make a call that is killed after so many function calls; 0: never; -1: nor are they counted.

        Returns: the exit status, negative for a signal; and the function calls, if it came to its end.
        """
        status, count = self.ask([after, *map(str, words)])
        return status, count

    def ask(self, words: list[Any]) -> Any:
        """Send words and return the answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


def _run(after: int, words: list[str], report: int) -> int:
    count = 0

    def counted(_frame: FrameType, _event: str, _argument: Any) -> None:
        nonlocal count
        count += 1
        if count == after:
            os.kill(os.getpid(), signal.SIGKILL)

    from vblk.cli.main import run_program

    if after >= 0:
        sys.setprofile(counted)
    status = run_program("vblk", words)
    sys.setprofile(None)
    os.write(report, str(count).encode())
    return status


def apply_settings() -> None:
    """Let constants of modules be what the killer was told."""
    for name, value in json.loads(sys.argv[1]).items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(module), constant, value)


def _serve() -> None:
    modules = ("vblk.cli.main", "vblk.cli.merge", "vblk.cli.compact", "vblk.drivers.vhdx_replay")
    for module in (*modules, *sys.argv[2:]):
        import_module(module)
    apply_settings()
    for line in sys.stdin:
        after, *words = json.loads(line)
        reading, report = os.pipe()
        child = os.fork()
        if not child:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1):
                os.dup2(null, descriptor)
            os._exit(_run(after, words, report))
        os.close(report)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            count = pipe.read()
        print(json.dumps([os.waitstatus_to_exitcode(status), int(count or 0)]), flush=True)


if __name__ == "__main__":
    _serve()
