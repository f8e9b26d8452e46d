"""`vblk nbd`: serves an image to NBD clients, as qemu-nbd does.

Owns: the verb's options in qemu-nbd's language, what they exclude, the way into the
background, and when the server ends. Serving is done by `vblk.exports.nbd`.

Ordering rule: clients may come before the process goes into the background, before
the file with its number is written, and before it says that it is ready.
"""

import asyncio
import os
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vblk.cli.background import Readiness, fork
from vblk.cli.command import ProgramVerb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, could_not_open
from vblk.cli.images import named_options
from vblk.cli.objects import objects_of, objects_option
from vblk.errors import BlockError
from vblk.graph.edge import READING, WRITING
from vblk.graph.gate import gate_of
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.opening import hand_down, open_node
from vblk.options import NodeOptions, NodeReference, parse_number, parse_size
from vblk.options.address import FdAddress, InetAddress, SocketAddress, UnixAddress
from vblk.wire.nbd.numbers import STRING_MAX
from vblk.wording import GUESSED

if TYPE_CHECKING:
    from vblk.exports.nbd import NbdExport, NbdServer

PROGRAM: Final = "qemu-nbd"
"""The program that is this verb and nothing else."""

DEFAULT_PORT: Final = "10809"
LOOPBACK: Final = "127.0.0.1"
ACTIVATED_FD: Final = 3
"""The first descriptor that systemd hands over, see sd_listen_fds(3)."""

SAID_MAX: Final = 64
"""How many different complaints about clients are told; nobody can fill a log with more."""

_CACHES: Final = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")
_DISCARDS: Final = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
_DETECTIONS: Final = ("off", "on", "unmap")


@dataclass(slots=True)
class Arguments:
    """The words of one call. `operands` are not options."""

    operands: tuple[str, ...] = ()
    port: str | None = None
    bind: str | None = None
    socket: str | None = None
    shared: str = "1"
    persistent: bool = False
    verbose: bool = False
    export_name: str | None = None
    description: str | None = None
    offset: str = "0"
    allocation_depth: bool = False
    bitmaps: tuple[str, ...] = ()
    listing: bool = False
    objects: tuple[str, ...] = ()
    tls_creds: str | None = None
    tls_authz: str | None = None
    tls_hostname: str | None = None
    trace: str | None = None
    fork: bool = False
    pid_file: str | None = None
    metrics: str | None = None
    selinux_label: str | None = None
    connect: str | None = None
    disconnect: bool = False
    format: str | None = None
    read_only: bool = False
    snapshot: bool = False
    load_snapshot: str | None = None
    nocache: bool = False
    cache: str | None = None
    aio: str | None = None
    discard: str | None = None
    detect_zeroes: str | None = None
    image_opts: bool = False
    version: bool = False
    help: bool = False


class NbdVerb(ProgramVerb[Arguments]):
    """The verb, and the program."""

    program = PROGRAM


def _run(arguments: Arguments, console: Console) -> int:
    if VERB.answered(arguments, console):
        return SUCCESS
    from vblk.cli.main import run_loop

    if arguments.image_opts and arguments.format is not None:
        raise Failure("--image-opts and -f are mutually exclusive")
    activated = _activated(arguments)
    _refuse_what_is_not_here(arguments)
    if arguments.listing:
        from vblk.cli.nbd_list import list_exports

        if arguments.operands:
            raise Failure("List mode is incompatible with a file name")
        if (arguments.export_name or arguments.description or arguments.connect) is not None:
            raise Failure("List mode is incompatible with per-device settings")
        return run_loop(list_exports(_address(arguments, console), arguments, console), sockets=True)
    if arguments.disconnect:
        raise Failure("--disconnect: this version of vblk attaches no kernel devices")
    if len(arguments.operands) != 1:
        raise Failure("Invalid number of arguments", hint=True)
    service = Service(arguments, console, activated)
    service.ready = Readiness(fork(console) if arguments.fork else None)
    try:
        return run_loop(service.run(), sockets=True)
    finally:
        service.ready.close()


def _activated(arguments: Arguments) -> bool:
    """Tell whether the socket to listen on was handed over, as systemd does it.

    Raises:
        Failure: It was, and another one is named as well.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return False
    count = os.environ.get("LISTEN_FDS", "")
    if not count.isdecimal() or int(count) < 1:
        return False
    if int(count) > 1:
        raise Failure(f"{PROGRAM} does not support socket activation with LISTEN_FDS > 1")
    for given, what in (
        (arguments.connect, "NBD device"),
        (arguments.socket, "Unix socket"),
        (arguments.bind, "The interface"),
        (arguments.port, "TCP port number"),
    ):
        if given is not None:
            raise Failure(f"{what} can't be set when using socket activation")
    return True


def _refuse_what_is_not_here(arguments: Arguments) -> None:
    if arguments.trace is not None:
        raise Failure("--trace is not supported: vblk has no trace events")
    if arguments.selinux_label is not None:
        raise Failure("--selinux-label is not supported in this version of vblk")
    if arguments.connect is not None:
        raise Failure("--connect: this version of vblk attaches no kernel devices")
    if arguments.load_snapshot is not None:
        raise Failure("--load-snapshot: this version of vblk exports no internal snapshots")
    if arguments.aio not in (None, "threads", "native", "io_uring"):
        raise Failure(f"Invalid aio mode '{arguments.aio}'")
    if arguments.aio not in (None, "threads"):
        raise Failure(f"--aio={arguments.aio}: this version of vblk has the engine 'threads' only")
    if arguments.tls_authz is not None and arguments.tls_creds is None:
        raise Failure("--tls-authz is not permitted without --tls-creds")
    if arguments.tls_hostname is not None and (arguments.tls_creds is None or not arguments.listing):
        raise Failure("--tls-hostname is not permitted without --tls-creds and --list")


def _address(arguments: Arguments, console: Console) -> UnixAddress | InetAddress:
    """Return the address that was named: a socket's path, or a port of an interface, this host's own one."""
    path = arguments.socket
    if path is None:
        return InetAddress(arguments.bind or LOOPBACK, arguments.port or DEFAULT_PORT)
    if not path.startswith("/") and console.name == PROGRAM:
        raise Failure("socket path must be absolute")
    return UnixAddress(path)


class Service:
    """One run of the server: from the image to its last client.

    `ready` tells who waits for that that clients may come.
    """

    def __init__(self, arguments: Arguments, console: Console, activated: bool) -> None:
        """Check the words.

        Raises:
            Failure: One of them means nothing, or contradicts another one.
        """
        self.ready = Readiness(None)
        self._arguments = arguments
        self._console = console
        self._said: set[str] = set()
        self._shared = _shared(arguments.shared)
        self._offset = _offset(arguments.offset)
        self._cache = _cache(arguments)
        self._discard = _discard(arguments)
        self._address: SocketAddress = FdAddress(ACTIVATED_FD) if activated else _address(arguments, console)
        for what, text in (("name", arguments.export_name), ("description", arguments.description)):
            if text is not None and len(os.fsencode(text)) > STRING_MAX:
                raise Failure(f"export {what} '{text}' too long")
        self._objects = objects_of(arguments.objects)

    async def run(self) -> int:
        """Serve until there is nobody left to serve, or a signal comes."""
        from vblk.exports.metrics import serving_metrics
        from vblk.exports.nbd import NbdServer

        arguments = self._arguments
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, over.set)
        async with Graph(gate=gate_of(self._console.name), objects=self._objects) as graph:
            tls = authorization = None
            try:
                if arguments.tls_creds is not None:
                    tls = graph.objects.credentials(arguments.tls_creds, "server")
                if arguments.tls_authz is not None:
                    authorization = graph.objects.authorization(arguments.tls_authz)
            except BlockError as error:
                raise Failure(f"Failed to get TLS creds: {error.message}") from error
            server = NbdServer(
                graph, max_connections=self._shared, tls=tls, authorization=authorization, report=self._report
            )

            def client_left(was_served: bool) -> None:
                if was_served and not server.clients and not arguments.persistent:
                    over.set()

            server.on_leave = client_left
            export = await self._add_export(server)
            try:
                await server.listen(self._address)
            except BlockError as error:
                raise Failure(error.message) from error
            try:
                async with serving_metrics(arguments.metrics, [export].copy):
                    self._tell_ready()
                    await over.wait()
            finally:
                await server.close()
        return SUCCESS

    async def _add_export(self, server: "NbdServer") -> "NbdExport":
        from vblk.exports.nbd import NbdExport
        from vblk.exports.nbd.export import NamedBitmap
        from vblk.graph.recording import find_below

        arguments = self._arguments
        handle = await self._open(server.graph)
        try:
            bitmaps = [NamedBitmap(name, find_below(handle.node, name)) for name in arguments.bitmaps]
        except BlockError as error:
            raise Failure(error.message) from error
        export = NbdExport(
            "nbd",
            server.graph,
            handle,
            name=arguments.export_name or "",
            description=arguments.description or "",
            writable=not arguments.read_only,
            bitmaps=bitmaps,
            allocation_depth=arguments.allocation_depth,
            multi_conn=self._shared != 1,
        )
        server.add(export)
        await export.start()
        return export

    async def _open(self, graph: Graph) -> Handle:
        """Open the image, with what is asked for on top of it."""
        arguments, console = self._arguments, self._console
        name = arguments.operands[0]
        below_read_only = arguments.read_only or arguments.snapshot
        try:
            options = named_options(
                name, image_opts=arguments.image_opts, format=arguments.format, console=console
            )
            wanted = replace(
                options,
                discard=options.discard or self._discard,
                detect_zeroes=arguments.detect_zeroes or options.detect_zeroes,
            )
            if wanted.driver is None and not {"file"} & wanted.children.keys() and not wanted.own:
                raise Failure("Must specify either driver or file")
            node = await open_node(graph, hand_down(wanted), Request(below_read_only, self._cache))
        except BlockError as error:
            raise _could_not_open(console, name, error) from error
        if options.driver is None and node.driver == "raw" and not node.read_only:
            console.plain_message(GUESSED.format(name))
        node = await self._decorated(graph, node)
        return graph.hold(node, "the NBD server", READING if arguments.read_only else WRITING)

    async def _decorated(self, graph: Graph, node: Node) -> Node:
        """Put a temporary overlay, and a window that begins at the offset, over the image."""
        try:
            if self._arguments.snapshot:
                from vblk.filters import snapshot

                node = await snapshot.put_over(graph, node, read_only=self._arguments.read_only)
            if self._offset > node.size:
                raise Failure(f"Invalid offset '{self._arguments.offset}'")
            if self._offset:
                window = NodeOptions(
                    driver="raw", own={"offset": self._offset}, children={"file": NodeReference(node.name)}
                )
                node = await open_node(graph, window, Request(self._arguments.read_only, self._cache))
        except BaseException:
            await graph.discard_unused(node)
            raise
        return node

    def _report(self, text: str) -> None:
        """Say once what clients do wrong."""
        if text not in self._said and len(self._said) < SAID_MAX:
            self._said.add(text)
            self._console.message(text)

    def _tell_ready(self) -> None:
        """Write the process's number into its file, and let go of who waits for the start.

        Raises:
            Failure: The file cannot be written.
        """
        path = self._arguments.pid_file
        if path is not None:
            try:
                with open(path, "w", encoding="ascii") as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(f"{os.getpid()}\n")
            except OSError as error:
                raise Failure(f"Could not create '{path}': {error.strerror}") from error
        self.ready.tell(keep_errors=self._arguments.verbose)


def _could_not_open(console: Console, name: str, error: BlockError) -> Failure:
    if console.name == PROGRAM:
        return Failure(f"Failed to blk_new_open '{name}': {error.message}")
    return could_not_open(name, error)


def _shared(text: str) -> int:
    try:
        number = parse_number(text)
    except BlockError:
        number = -1
    if number < 0:
        raise Failure(f"Invalid shared device number '{text}'")
    return number


def _offset(text: str) -> int:
    try:
        return parse_size(text)
    except BlockError:
        raise Failure(f"Invalid offset '{text}'") from None


def _cache(arguments: Arguments) -> str:
    if arguments.nocache and arguments.cache is not None:
        raise Failure("-n and --cache can only be specified once")
    mode = "none" if arguments.nocache else arguments.cache or "writeback"
    if mode not in _CACHES:
        raise Failure(f"Invalid cache mode `{mode}'")
    return mode


def _discard(arguments: Arguments) -> str:
    """Return whether discards reach the image: not, unless they are asked for."""
    mode = arguments.discard or "ignore"
    if mode not in _DISCARDS:
        raise Failure(f"Invalid discard mode `{mode}'")
    detection = arguments.detect_zeroes
    if detection is not None and detection not in _DETECTIONS:
        raise Failure(f"Failed to parse detect_zeroes mode: invalid parameter value: {detection}")
    if detection == "unmap" and _DISCARDS[mode] != "unmap":
        raise Failure(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
        )
    return _DISCARDS[mode]


OPTIONS: Final = (
    option("-p", "--port", "port", metavar="PORT", help="TCP port to listen on: 10809."),
    option(
        "-b", "--bind", "bind", metavar="IFACE", help="Interface to listen on: this host's own, 127.0.0.1."
    ),
    option("-k", "--socket", "socket", metavar="PATH", help="Listen on a unix socket instead."),
    option("-e", "--shared", "shared", metavar="NUM", default="1", help="Clients at a time: 1; 0: any."),
    flag("-t", "--persistent", "persistent", help="Go on when the last client has left."),
    flag("-v", "--verbose", "verbose", help="With --fork: go on to say what clients do wrong."),
    option("-x", "--export-name", "export_name", metavar="NAME", help="Name of the export: the empty one."),
    option("-D", "--description", "description", metavar="TEXT", help="Text that clients may show."),
    option("-o", "--offset", "offset", metavar="OFFSET", default="0", help="Where in the image to begin."),
    flag("-A", "--allocation-depth", "allocation_depth", help="Tell which image of a chain holds what."),
    option(
        "-B",
        "--bitmap",
        "bitmaps",
        metavar="NAME",
        multiple=True,
        help="Tell what a dirty bitmap of the image says.",
    ),
    flag("-L", "--list", "listing", help="List the exports of another server."),
    objects_option(),
    option("--tls-creds", "tls_creds", metavar="ID", help="Demand TLS, with the credentials of an --object."),
    option("--tls-authz", "tls_authz", metavar="ID", help="An --object that says which clients may come."),
    option(
        "--tls-hostname", "tls_hostname", metavar="NAME", help="With -L: name in the server's certificate."
    ),
    option("-T", "--trace", "trace", metavar="EVENTS", help="Refused: vblk has no trace events."),
    flag("--fork", help="Return when clients may come, and serve in the background."),
    option("--metrics", metavar="ADDR", help="Tell Prometheus: unix:PATH, PORT or HOST:PORT."),
    option("--pid-file", "pid_file", metavar="PATH", help="Write the process's number there."),
    option("--selinux-label", "selinux_label", metavar="LABEL", help="Refused: not in this version."),
    option("-c", "--connect", "connect", metavar="DEV", help="Refused: no kernel devices in this version."),
    flag("-d", "--disconnect", "disconnect", help="Refused, as --connect."),
    option("-f", "--format", "format", metavar="FMT", help="Format of the image; probed when not given."),
    flag("-r", "--read-only", "read_only", help="Let clients read only."),
    flag("-s", "--snapshot", "snapshot", help="Keep what is written in an overlay that is gone at the end."),
    option(
        "-l",
        "--load-snapshot",
        "load_snapshot",
        metavar="SNAPSHOT",
        help="Refused: not in this version.",
    ),
    flag("-n", "--nocache", "nocache", help="Go around the system's cache: --cache=none."),
    option(
        "--cache",
        "cache",
        metavar="MODE",
        help="Cache mode: writeback, none, writethrough, directsync, unsafe.",
    ),
    option("--aio", "aio", metavar="MODE", help="How requests reach the system: threads, the only one here."),
    option("--discard", "discard", metavar="MODE", help="Whether discards reach the image: ignore or unmap."),
    option(
        "--detect-zeroes",
        "detect_zeroes",
        metavar="MODE",
        help="Look for zeros in writes: on, unmap or off.",
    ),
    flag("--image-opts", "image_opts", help="FILE is options: driver=vhdx,file.filename=a.vhdx"),
    flag("-V", "--version", "version", help="Show the version."),
)

VERB = NbdVerb(
    "nbd",
    _run,
    Arguments,
    OPTIONS,
    operands="FILE",
    help="Serve an image to NBD clients, as qemu-nbd does: over TCP on this host, or on a unix socket.",
)
