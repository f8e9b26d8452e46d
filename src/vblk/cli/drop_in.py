"""`vblk drop-in`: programs with QEMU's names that run this very installation.

Owns: the launchers: which there are, and what stands in them.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import vblk
from vblk.cli.command import Verb
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure

PROGRAMS = ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")


@dataclass(slots=True)
class Arguments:
    """The words of one call."""

    operands: tuple[str, ...]


def launcher(program: str) -> str:
    """Return the text of a launcher.

    The interpreter does not look for modules in the working directory (`-P`),
    where an untrusted image may have company.
    """
    package = str(Path(vblk.__file__).resolve().parent.parent)
    code = f"import sys; sys.path.append({package!r}); from vblk.cli.main import run_as; run_as({program!r})"
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(code)} "$@"\n'


def run(arguments: Arguments, console: Console) -> int:
    """Write the launchers, each under a temporary name first."""
    if len(arguments.operands) != 1:
        raise Failure("Expecting the name of a folder", hint=True)
    folder = arguments.operands[0]
    try:
        os.makedirs(folder, exist_ok=True)
        for program in PROGRAMS:
            path = os.path.join(folder, program)
            temporary = f"{path}.{os.getpid()}"
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(launcher(program))
                os.fchmod(file.fileno(), 0o755)
            os.rename(temporary, path)
            console.print(path)
    except OSError as error:
        raise Failure(f"cannot write programs into '{folder}': {error.strerror}") from error
    return SUCCESS


VERB = Verb(
    "drop-in",
    run,
    Arguments,
    [],
    operands="DIR",
    help="Write programs named qemu-img, qemu-io, qemu-nbd and qemu-storage-daemon into DIR that behave as "
    "QEMU's as far as this version goes.",
)
