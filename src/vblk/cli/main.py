"""The entry of the command line: from the words of a call to an exit status.

Owns: which verb runs, the end of every run (one line for an error, silence for a
closed pipe, 130 for Ctrl-C), and the event loop around it. Must not know what
any verb does.

Ordering rule: what was printed is pushed out before the exit status is decided,
so that a full disk or a closed pipe is never taken for success.
"""

import os
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from vblk.cli.console import Console
from vblk.cli.failure import (
    FAILURE,
    INTERNAL,
    INTERRUPTED,
    PIPE_CLOSED,
    SUCCESS,
    TERMINATED,
    Failure,
    exit_status,
)
from vblk.cli.scan import ScanError, scan_arguments
from vblk.errors import BlockError

DEBUG_VARIABLE = "VBLK_DEBUG"

ONE_VERB = {"qemu-io": "io", "qemu-nbd": "nbd", "qemu-storage-daemon": "daemon"}
"""Programs of QEMU that are one verb and nothing else."""

_PROGRAM_OPTIONS = {"-h": False, "--help": False, "-V": False, "--version": False}


def run() -> NoReturn:
    """Run `vblk` with the words of this process's call."""
    _leave(run_program("vblk", sys.argv[1:]))


def run_as(name: str) -> NoReturn:
    """Run as the program `name`, such as `qemu-img`, with the words of this process's call."""
    _leave(run_program(name, sys.argv[1:]))


def _leave(status: int) -> NoReturn:
    """End the process without taking the interpreter apart: all is closed and written.

    The taking apart would cost a short command a tenth of its time.
    """
    sys.stderr.flush()
    os._exit(status)


def run_program(name: str, words: Sequence[str]) -> int:
    """Carry out one call and return its exit status.

    Args:
        name: The program's name, the prefix of its messages.
        words: The words behind the name.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")  # names of files may be any bytes
    console = Console(name)
    try:
        status = _guarded(console, words)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return PIPE_CLOSED
    except OSError as error:
        _forget_output()
        console.message(f"cannot write the output: {error.strerror}")
        return _debugged(error, FAILURE)
    return status


def _forget_output() -> None:
    """Let the interpreter's last flush go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _guarded(console: Console, words: Sequence[str]) -> int:
    verb = ""
    try:
        verb, rest = _split(console, words)
        return _dispatch(console, verb, rest) if verb else SUCCESS
    except (Failure, BlockError) as error:
        console.failed(error)
        return _debugged(error, exit_status(verb, error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except OSError as error:
        if error.filename is None:  # the library has typed errors of its own: this is our output
            raise
        return _internal(console, error)
    except Exception as error:
        return _internal(console, error)


def _internal(console: Console, error: Exception) -> int:
    text = " ".join(str(error).split())
    console.message(
        f"internal error: {type(error).__name__}: {text} (set {DEBUG_VARIABLE}=1 to see where it happened)"
    )
    return _debugged(error, INTERNAL)


def _debugged(error: BaseException, status: int) -> int:
    """Show where an error came from to those who ask for it; return `status`."""
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    return status


def _split(console: Console, words: Sequence[str]) -> tuple[str, list[str]]:
    """Answer the program's own options; return the verb and its words, or no verb when all is said."""
    if console.name in ONE_VERB:
        return ONE_VERB[console.name], list(words)
    try:
        scan = scan_arguments(words, _PROGRAM_OPTIONS, permute=False)
    except ScanError as error:
        raise Failure(str(error), hint=True) from None
    for name, _ in scan.options:
        from vblk.cli import texts

        if name in ("-h", "--help"):
            console.print(texts.help_text(console.name))
            return "", []
        console.print(texts.version_text(console.name))
        return "", []
    if not scan.operands:
        raise Failure("Not enough arguments", hint=True)
    return scan.operands[0], scan.operands[1:]


def _dispatch(console: Console, name: str, words: list[str]) -> int:
    from vblk.cli.command import HelpWanted
    from vblk.cli.verbs import load_verb

    verb = load_verb(name)
    if verb is None:
        raise Failure(f"Command not found: {name}", hint=True)
    try:
        arguments = verb.read(words, console.name)
    except HelpWanted:
        from vblk.cli import texts

        console.print(
            verb.help_page(console.name) if console.name == "vblk" else texts.help_text(console.name)
        )
        return SUCCESS
    outcome = verb.start(arguments, console)
    return outcome if isinstance(outcome, int) else run_loop(outcome)


class Terminated(BaseException):
    """The process was asked to end by SIGTERM or SIGHUP."""


def run_loop(main: Coroutine[Any, Any, int], *, sockets: bool = False) -> int:
    """Run a verb on an event loop; SIGTERM and SIGHUP end it as Ctrl-C does, with all cleanup.

    `sockets` says that it lives from its sockets; see `loops.run`.

    Raises:
        Terminated: One of these signals came.
        KeyboardInterrupt: Ctrl-C came.
    """
    import asyncio
    import signal

    from vblk.aio import loops

    async def guarded() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                loop.add_signal_handler(number, end)
        try:
            return await main
        except asyncio.CancelledError:
            if ended:
                raise Terminated from None
            raise

    return loops.run(guarded(), sockets=sockets)
