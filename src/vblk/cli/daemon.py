"""`vblk daemon`: a storage daemon with qemu-storage-daemon's options.

Owns: the options, the order in which they take effect, and the life of the process:
its file of the process id, going into the background, and its end. What the options
do is done by the monitor's commands.

Ordering rule: options take effect in the order in which they were given. At the end
clients of the monitor go first, then exports, then nodes; the file of the process id
goes last.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TextIO

import click

from vblk.cli.background import Readiness, fork
from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import FAILURE, SUCCESS, Failure, sentence
from vblk.cli.scan import ScanError, scan_arguments
from vblk.errors import BlockError

if TYPE_CHECKING:
    from vblk.cli.daemon_run import Startup

PROGRAM: Final = "qemu-storage-daemon"
"""The program that is this verb and nothing else."""


@dataclass(slots=True)
class DaemonArguments:
    """The words of one call: `steps` are those whose order counts."""

    steps: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    daemonize: bool = False
    pidfile: str | None = None
    log: str | None = None
    metrics: str | None = None
    allow_tcp_monitor: bool = False
    version: bool = False
    help: bool = False


def _step(*names: str, metavar: str, help: str) -> click.Option:
    return option(*names, metavar=metavar, multiple=True, help=help)


OPTIONS = (
    _step("--blockdev", metavar="OPTIONS", help="Add a node: driver=...,node-name=N,..., or JSON."),
    _step("--chardev", metavar="OPTIONS", help="socket,id=ID,path=PATH,server=on[,wait=off] or stdio,id=ID."),
    _step(
        "--export",
        metavar="OPTIONS",
        help="Export a node: type=nbd,id=ID,node-name=N[,name=][,writable=on]...",
    ),
    _step("--monitor", metavar="OPTIONS", help="[chardev=]ID[,mode=control|readline][,pretty=on]"),
    _step(
        "--nbd-server", metavar="OPTIONS", help="addr.type=unix,addr.path=PATH or inet,addr.host=,addr.port=."
    ),
    _step(
        "--object", metavar="OPTIONS", help="secret,id=ID,data=TEXT and other objects that options refer to."
    ),
    option("--pidfile", metavar="FILE", help="Write the process id to FILE when everything is set up."),
    flag("--daemonize", help="Go into the background when everything is set up."),
    option("-T", "--trace", "trace", metavar="EVENTS", help="Refused: vblk has no trace events."),
    option("--metrics", metavar="ADDR", help="Tell Prometheus: unix:PATH, PORT or HOST:PORT."),
    option("--log", metavar="FILE|-", help="Log as JSON lines to FILE, or to standard error."),
    flag("--allow-tcp-monitor", help="Let a monitor listen on TCP, where every local user reaches it."),
    flag("-V", "--version", help="Show the version."),
)

_STEPS: Final = ("--blockdev", "--chardev", "--export", "--monitor", "--nbd-server", "--object")


class DaemonVerb(Verb[DaemonArguments]):
    """The verb. The order of its options counts, so they are not sorted by name."""

    def read(self, words: Sequence[str], program: str) -> DaemonArguments:
        """Turn the words of a call into its arguments.

        Raises:
            Failure: A word is no option.
        """
        flags = {name: not each.is_flag for each in OPTIONS for name in each.opts}
        try:
            scan = scan_arguments(words, flags | {"-h": False, "--help": False})
        except ScanError as error:
            raise Failure(str(error)) from None
        arguments = DaemonArguments()
        for name, value in scan.options:
            if name in ("-h", "--help"):
                arguments.help = True
            elif name in _STEPS:
                arguments.steps.append((name, value or ""))
            else:
                _set(arguments, name, value)
        if scan.operands:
            raise Failure(f"{scan.operands[0]}: Unexpected argument")
        return arguments


def _set(arguments: DaemonArguments, name: str, value: str | None) -> None:
    if name in ("-T", "--trace"):
        raise Failure("--trace is not supported: vblk has no trace events")
    if name in ("-V", "--version"):
        arguments.version = True
    elif name in ("--daemonize", "--allow-tcp-monitor"):
        setattr(arguments, name[2:].replace("-", "_"), True)
    else:
        setattr(arguments, name[2:], value)


def _run(arguments: DaemonArguments, console: Console) -> int:
    if arguments.help:
        called = console.name if console.name == PROGRAM else f"{console.name} {VERB.name}"
        console.print(VERB.get_help(click.Context(VERB, info_name=called, max_content_width=100)))
        return SUCCESS
    if arguments.version:
        from vblk.cli.texts import version_text

        console.print(version_text(console.name))
        return SUCCESS
    with ExitStack() as stack:
        ready = Readiness(fork(console) if arguments.daemonize else None)
        stack.callback(ready.close)
        log = stack.enter_context(_open_log(arguments.log)) if arguments.log not in (None, "-") else None
        return _serve(arguments, console, ready, log)


def _open_log(path: "str | None") -> TextIO:
    assert path is not None
    try:
        return open(path, "a", encoding="utf-8", errors="backslashreplace", opener=_private)
    except OSError as error:
        raise Failure(f"cannot open the log '{path}': {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _serve(arguments: DaemonArguments, console: Console, ready: Readiness, log: TextIO | None) -> int:
    from vblk.aio import loops
    from vblk.cli.daemon_run import Startup
    from vblk.exports.metrics import serving_metrics
    from vblk.graph.registry import Graph
    from vblk.monitor.commands import daemon_commands
    from vblk.monitor.daemon import Daemon
    from vblk.monitor.log import Log

    name = console.name if console.name == PROGRAM else f"{console.name} {VERB.name}"
    said = Log(name, log or console.err, structured=arguments.log is not None)

    async def live() -> int:
        daemon = Daemon(Graph(), said)
        startup = Startup(daemon, daemon_commands(), allow_tcp_monitor=arguments.allow_tcp_monitor)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, startup.daemon.ended.set)
        try:
            async with serving_metrics(arguments.metrics, startup.daemon.exports.values):
                if await _set_up(startup, arguments, console):
                    ready.tell()
                    await startup.daemon.ended.wait()
                    return SUCCESS
                return FAILURE
        finally:
            await startup.close()
            if startup.pidfile is not None:
                with suppress(OSError):
                    os.unlink(startup.pidfile)

    return loops.run(live(), sockets=True)


async def _set_up(startup: "Startup", arguments: DaemonArguments, console: Console) -> bool:
    """Carry out all steps; tell whether all went well, and say what did not."""
    from vblk.wire.qmp import QmpError

    interrupted = asyncio.ensure_future(startup.daemon.ended.wait())
    try:
        for name, value in arguments.steps:
            step = asyncio.ensure_future(startup.step(name, value))
            await asyncio.wait((step, interrupted), return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                step.cancel()
                await asyncio.wait((step,))
                return True
            try:
                step.result()
            except QmpError as error:
                console.message(f"{name} {value}: {error}")
                return False
            except BlockError as error:
                console.message(f"{name} {value}: {sentence(error)}")
                return False
        if arguments.pidfile is not None:
            startup.write_pidfile(arguments.pidfile)
    finally:
        interrupted.cancel()
    return True


VERB = DaemonVerb(
    "daemon",
    _run,
    DaemonArguments,
    OPTIONS,
    operands="",
    help="Serve nodes of a block graph, and change it by QMP, with the options of qemu-storage-daemon. "
    "Options take effect in the order given. The daemon ends on SIGTERM, SIGINT or the command quit.",
)
