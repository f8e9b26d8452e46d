"""The human monitor: QEMU's commands for people, one line at a time.

Owns: the commands and their words, for `human-monitor-command`, a monitor with
`mode=readline`, and `vblk monitor`. What they do is done by the daemon.

Ordering rule: a line is carried out before the next one is read.

Source: QEMU's manual, "QEMU Monitor", and the answers of qemu-system-x86_64 7.2.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vblk.errors import BlockError, GraphError
from vblk.monitor.daemon import Daemon
from vblk.monitor.failures import qmp_error
from vblk.options import parse_size
from vblk.wire.qmp import QmpError

LINE_END: Final = "\r\n"


class Misused(Exception):
    """A line is no command; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One word of a command. `flag` is a letter behind a dash, which may be left out, as `optional` words."""

    name: str
    expected: str = "string"
    optional: bool = False
    flag: bool = False


Arguments = dict[str, str]
Run = Callable[["HumanMonitor", Arguments], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HumanCommand:
    """One command: its names, joined by `|`, its words, and what it is for."""

    names: str
    parameters: tuple[Parameter, ...]
    usage: str
    purpose: str
    run: Run

    def help(self) -> str:
        """Return its line of help."""
        return f"{self.names} {self.usage} -- {self.purpose}"


class HumanMonitor:
    """Carries out lines; what they have to say is collected.

    `io_output` takes what the commands of `qemu-io` print; without, that is part of
    the answer. Tables may be extended: `commands` and `info` are by name.
    """

    def __init__(self, daemon: Daemon, *, io_output: Callable[[str], None] | None = None) -> None:
        self.daemon = daemon
        self.io_output = io_output
        self.commands = _by_name(COMMANDS)
        self.info = _by_name(INFO)
        self._said: list[str] = []

    def say(self, text: str) -> None:
        """Answer with a line, or several."""
        self._said += text.split("\n")

    async def execute(self, line: str) -> str:
        """Carry out a line and return what it answers, with the line ends of a terminal."""
        self._said = []
        try:
            await self._run(line)
        except Misused as error:
            self.say(str(error))
        except QmpError as error:
            self.say(f"Error: {error}")
        except BlockError as error:
            self.say(f"Error: {qmp_error(error)}")
        return "".join(line + LINE_END for line in self._said)

    async def _run(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if not name:
            return
        table, path = self.commands, name
        if name == "info" and rest.strip():
            table, path = self.info, f"info {rest.split()[0]}"
            name, _, rest = rest.strip().partition(" ")
        command = table.get(name)
        if command is None:
            raise Misused(f"unknown command: '{path}'")
        try:
            arguments = read_words(command, rest)
        except Misused as error:
            raise Misused(f'{command.names}: {error}\nTry "help {path}" for more information') from None
        await command.run(self, arguments)

    def completions(self, line: str) -> Iterator[str]:
        """Yield what the last word of a line may become."""
        *before, last = line.split(" ")
        words = [word for word in before if word]
        choices: Sequence[str]
        if not words:
            choices = sorted(self.commands)
        elif words in (["info"], ["help", "info"]):
            choices = sorted(self.info)
        elif words == ["help"]:
            choices = sorted(self.commands)
        else:
            choices = [node.name for node in self.daemon.graph.nodes()] + sorted(self.daemon.exports)
        return (choice for choice in choices if choice.startswith(last))


def _by_name(commands: Sequence[HumanCommand]) -> dict[str, HumanCommand]:
    return {name: command for command in commands for name in command.names.split("|")}


def read_words(command: HumanCommand, text: str) -> Arguments:
    """Divide a line into the words of a command.

    Raises:
        Misused: One is missing, or there are too many.
    """
    words = list(_words(text))
    arguments: Arguments = {}
    flags = {parameter.name for parameter in command.parameters if parameter.flag}
    while words and words[0].startswith("-") and words[0] != "-" and flags:
        given = words.pop(0)[1:]
        if given not in flags:
            raise Misused(f"unsupported option -{given}")
        arguments[given] = "on"
    for parameter in command.parameters:
        if parameter.flag:
            continue
        if words:
            arguments[parameter.name] = words.pop(0)
        elif not parameter.optional:
            raise Misused(f"{parameter.expected} expected")
    if words:
        raise Misused("extraneous characters at the end of line")
    return arguments


_ESCAPES: Final = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}


def _words(text: str) -> Iterator[str]:
    """Cut a text at its blanks; what stands in double quotes is one word."""
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text):
            return
        if text[position] != '"':
            end = position
            while end < len(text) and not text[end].isspace():
                end += 1
            yield text[position:end]
            position = end
            continue
        word, position = _quoted(text, position + 1)
        yield word


def _quoted(text: str, position: int) -> tuple[str, int]:
    word = ""
    while position < len(text) and text[position] != '"':
        if text[position] == "\\":
            position += 1
            escaped = text[position : position + 1]
            if escaped not in _ESCAPES:
                raise Misused(f"unsupported escape code: '\\{escaped}'")
            word += _ESCAPES[escaped]
        else:
            word += text[position]
        position += 1
    if position == len(text):
        raise Misused("unterminated string")
    return word, position + 1


# The commands


async def _help(monitor: HumanMonitor, arguments: Arguments) -> None:
    name, item = arguments.get("name"), arguments.get("item")
    table = monitor.info if name == "info" else monitor.commands
    if name is None or (name == "info" and item is None):
        lines = {command.help() for command in table.values()}
        prefix = "" if name is None else "info "
        for line in sorted(lines):
            monitor.say(prefix + line)
        return
    wanted = table.get(item or "") if name == "info" else table.get(name)
    if wanted is None:
        raise Misused(f"unknown command: '{name if item is None else f'{name} {item}'}'")
    monitor.say(("info " if name == "info" else "") + wanted.help())


async def _info(monitor: HumanMonitor, arguments: Arguments) -> None:
    await _help(monitor, {"name": "info"})


async def _quit(monitor: HumanMonitor, arguments: Arguments) -> None:
    monitor.daemon.ended.set()


async def _block_resize(monitor: HumanMonitor, arguments: Arguments) -> None:
    from vblk.monitor.commands.nodes import block_resize
    from vblk.monitor.schema import Resize

    node = monitor.daemon.find_either(arguments["device"])
    size = parse_size(arguments["size"])
    await block_resize(monitor.daemon, Resize(node_name=node.name, size=size))


async def _qemu_io(monitor: HumanMonitor, arguments: Arguments) -> None:
    from vblk.monitor.qemu_io import run_line

    daemon, name = monitor.daemon, arguments["device"]
    try:
        node = daemon.find_guest_device(name) if arguments.get("d") else daemon.find_either(name)
    except GraphError:
        node = daemon.find_device(None, name)  # which says it in QEMU's words
    text = await run_line(monitor.daemon, node, arguments["command"], monitor.io_output)
    if text:
        monitor.say(text.rstrip("\n"))


def _job(verb: str) -> Run:
    async def run(monitor: HumanMonitor, arguments: Arguments) -> None:
        from vblk.monitor.commands.jobs import find_block_job

        job = find_block_job(monitor.daemon, arguments["device"])
        if verb == "cancel":
            job.cancel(force="f" in arguments)
        elif verb == "set_speed":
            job.set_speed(parse_size(arguments["speed"]))
        else:
            getattr(job, verb)()

    return run


async def _nbd_server_start(monitor: HumanMonitor, arguments: Arguments) -> None:
    """Listen at `unix:PATH` or `HOST:PORT`; with `-a` export everything that was added by itself."""
    from vblk.monitor.commands.exports import nbd_server_add, start_nbd_server
    from vblk.monitor.schema import InetAddressOf, NbdServerAdd, NbdServerOptions, UnixAddressOf

    daemon, place = monitor.daemon, arguments["uri"]
    host, colon, port = place.rpartition(":")
    if host == "unix":
        await start_nbd_server(daemon, None, NbdServerOptions(addr=UnixAddressOf(port)))
    elif colon:
        await start_nbd_server(daemon, None, NbdServerOptions(addr=InetAddressOf(host or "localhost", port)))
    else:
        raise QmpError(f"'{place}' is no address: unix:PATH or HOST:PORT is")
    for node in daemon.graph.nodes():
        if "a" in arguments and daemon.graph.keeps(node):
            await nbd_server_add(daemon, NbdServerAdd(device=node.name, writable="w" in arguments))


async def _nbd_server_stop(monitor: HumanMonitor, arguments: Arguments) -> None:
    from vblk.monitor.commands.exports import nbd_server_stop

    await nbd_server_stop(monitor.daemon)


async def _nbd_server_add(monitor: HumanMonitor, arguments: Arguments) -> None:
    from vblk.monitor.commands.exports import nbd_server_add
    from vblk.monitor.schema import NbdServerAdd

    options = NbdServerAdd(device=arguments["device"], name=arguments.get("name"), writable="w" in arguments)
    await nbd_server_add(monitor.daemon, options)


async def _nbd_server_remove(monitor: HumanMonitor, arguments: Arguments) -> None:
    from vblk.monitor.commands.exports import nbd_server_remove
    from vblk.monitor.schema import NbdServerRemove, RemoveMode

    mode = RemoveMode.HARD if "f" in arguments else RemoveMode.SAFE
    await nbd_server_remove(monitor.daemon, NbdServerRemove(name=arguments["name"], mode=mode))


async def _info_block(monitor: HumanMonitor, arguments: Arguments) -> None:
    """Show one node, those that were added by themselves, or with `-n` all."""
    from vblk.monitor.commands.nodes import describe_node

    wanted = arguments.get("device")
    nodes = [
        node
        for node in reversed(list(monitor.daemon.graph.nodes()))
        if node.name == wanted or (wanted is None and ("n" in arguments or monitor.daemon.graph.keeps(node)))
    ]
    blocks: list[str] = []
    for node in nodes:
        shown = await describe_node(node)
        blocks.append("\n".join(_node_lines(shown, verbose="v" in arguments)))
    if blocks:
        monitor.say(("\n" if wanted is not None else "") + "\n\n".join(blocks))


def _node_lines(shown: Any, *, verbose: bool) -> Iterator[str]:
    from vblk.describing import report_lines

    access = ", read-only" if shown.ro else ""
    yield f"{shown.node_name}: {shown.file} ({shown.drv}{access})"
    modes = [
        "writeback" if shown.cache.writeback else "writethrough",
        *(["direct"] if shown.cache.direct else []),
        *(["ignore flushes"] if shown.cache.no_flush else []),
    ]
    yield f"    Cache mode:       {', '.join(modes)}"
    if shown.backing_file is not None:
        yield f"    Backing file:     {shown.backing_file} (chain depth: {shown.backing_file_depth})"
    if verbose:
        yield ""
        yield "Images:"
        image = shown.image
        while image is not None:
            yield from report_lines(image)
            image = image.get("backing-image")


async def _info_named(monitor: HumanMonitor, arguments: Arguments) -> None:
    await _info_block(monitor, {**arguments, "n": "on"})


async def _info_block_jobs(monitor: HumanMonitor, arguments: Arguments) -> None:
    from vblk.jobs.block_job import BlockJob

    jobs = [job for job in monitor.daemon.jobs.values() if isinstance(job, BlockJob)]
    if not jobs:
        monitor.say("No active jobs")
    for job in jobs:
        what = f"Streaming device {job.id}" if job.type == "stream" else f"Type {job.type}, device {job.id}"
        monitor.say(f"{what}: Completed {job.current} of {job.total} bytes, speed limit {job.speed} bytes/s")


async def _info_exports(monitor: HumanMonitor, arguments: Arguments) -> None:
    for export in monitor.daemon.exports.values():
        access = "writable" if export.writable else "read-only"
        monitor.say(
            f"{export.id}: {export.type}, node {export.handle.node.name}, {access}, users {export.users}"
        )


async def _info_version(monitor: HumanMonitor, arguments: Arguments) -> None:
    version = monitor.daemon.version
    numbers = version["qemu"]
    monitor.say(f"{numbers['major']}.{numbers['minor']}.{numbers['micro']} {version['package']}")


_DEVICE = Parameter("device", "block device name")

COMMANDS: Final = (
    HumanCommand(
        "help|?",
        (Parameter("name", optional=True), Parameter("item", optional=True)),
        "[cmd]",
        "show the help",
        _help,
    ),
    HumanCommand("info", (), "[subcommand]", "show various information about the system state", _info),
    HumanCommand("quit|q", (), "", "end the daemon", _quit),
    HumanCommand(
        "block_resize", (_DEVICE, Parameter("size")), "device size", "resize a block image", _block_resize
    ),
    HumanCommand(
        "qemu-io",
        (Parameter("d", flag=True), _DEVICE, Parameter("command")),
        '[-d] [device] "[command]"',
        "run a qemu-io command on a block device",
        _qemu_io,
    ),
    HumanCommand(
        "block_job_cancel",
        (Parameter("f", flag=True), _DEVICE),
        "[-f] device",
        "stop an active background block operation",
        _job("cancel"),
    ),
    HumanCommand(
        "block_job_complete", (_DEVICE,), "device", "let a block operation come to its end", _job("complete")
    ),
    HumanCommand(
        "block_job_pause", (_DEVICE,), "device", "pause an active background block operation", _job("pause")
    ),
    HumanCommand(
        "block_job_resume", (_DEVICE,), "device", "resume a paused background block operation", _job("resume")
    ),
    HumanCommand(
        "block_job_set_speed",
        (_DEVICE, Parameter("speed")),
        "device speed",
        "set maximum speed for a background block operation",
        _job("set_speed"),
    ),
    HumanCommand(
        "nbd_server_add",
        (Parameter("w", flag=True), _DEVICE, Parameter("name", optional=True)),
        "[-w] device [name]",
        "export a block device via NBD",
        _nbd_server_add,
    ),
    HumanCommand(
        "nbd_server_remove",
        (Parameter("f", flag=True), Parameter("name")),
        "[-f] name",
        "remove an export previously exposed via NBD",
        _nbd_server_remove,
    ),
    HumanCommand(
        "nbd_server_start",
        (Parameter("a", flag=True), Parameter("w", flag=True), Parameter("uri")),
        "[-a] [-w] unix:path|host:port",
        "serve block devices using the NBD protocol (-a: all of them; -w: writable)",
        _nbd_server_start,
    ),
    HumanCommand(
        "nbd_server_stop", (), "", "stop serving block devices using the NBD protocol", _nbd_server_stop
    ),
)
INFO: Final = (
    HumanCommand(
        "block",
        (Parameter("n", flag=True), Parameter("v", flag=True), Parameter("device", optional=True)),
        "[-n] [-v] [device]",
        "show info of one block device or all block devices (-n: show named nodes; -v: show details)",
        _info_block,
    ),
    HumanCommand("block-jobs", (), "", "show progress of ongoing block device operations", _info_block_jobs),
    HumanCommand("exports", (), "", "show exports and how many use them", _info_exports),
    HumanCommand(
        "named-block-nodes",
        (Parameter("v", flag=True),),
        "[-v]",
        "show all nodes of the block graph",
        _info_named,
    ),
    HumanCommand("version", (), "", "show which QEMU this monitor follows", _info_version),
)
