"""A daemon that runs: what each option of `vblk daemon` does.

Owns: the character devices, the monitors on them, and the file of the process id.
"""

import os
from enum import Enum
from typing import Any

from msgspec import Struct

from vblk.cli.failure import Failure
from vblk.monitor.arguments import read_arguments
from vblk.monitor.blockdev import Blockdev
from vblk.monitor.channel import Channel
from vblk.monitor.chardev import Chardev, Serve, Socket, read_chardev
from vblk.monitor.commands.exports import block_export_add, start_nbd_server
from vblk.monitor.commands.nodes import blockdev_add
from vblk.monitor.daemon import Daemon
from vblk.monitor.human import HumanMonitor
from vblk.monitor.human_server import HumanServer
from vblk.monitor.keyval import parse_option
from vblk.monitor.qmp_server import QmpServer
from vblk.monitor.schema import ExportOptions, NbdServerOptions
from vblk.monitor.table import CommandTable
from vblk.objects import add_object, read_object_text
from vblk.wire.qmp import QmpError


class Mode(Enum):
    """Who uses a monitor: programs or people."""

    CONTROL = "control"
    READLINE = "readline"


class MonitorOptions(Struct, rename="kebab"):
    """The options of `--monitor`."""

    chardev: str
    mode: Mode = Mode.CONTROL
    pretty: bool = False


class Startup:
    """The daemon, and what the command line adds to it."""

    def __init__(self, daemon: Daemon, commands: CommandTable, *, allow_tcp_monitor: bool = False) -> None:
        """Begin with an empty daemon, whose monitors know `commands`."""
        self.daemon = daemon
        self.pidfile: str | None = None
        self._commands = commands
        self._chardevs: dict[str, Chardev] = {}
        self._allow_tcp_monitor = allow_tcp_monitor
        self._attached: set[str] = set()

    async def step(self, name: str, text: str) -> None:
        """Carry out one option.

        Raises:
            QmpError: It is wrong, in QEMU's words.
            BlockError: It failed.
        """
        implied = _IMPLIED[name]
        values, texts = parse_option(text, implied)
        if name == "--blockdev":
            await blockdev_add(self.daemon, read_arguments(values, Blockdev, texts=texts))
        elif name == "--chardev":
            await self._add_chardev(values)
        elif name == "--monitor":
            self._add_monitor(read_arguments(values, MonitorOptions, texts=texts))
        elif name == "--nbd-server":
            options = read_arguments(values, NbdServerOptions, texts=texts)
            await start_nbd_server(self.daemon, None, options)
        elif name == "--export":
            await block_export_add(self.daemon, read_arguments(values, ExportOptions, texts=texts))
        else:
            add_object(self.daemon.graph.objects, read_object_text(text))

    async def _add_chardev(self, values: dict[str, Any]) -> None:
        options = read_chardev(values)
        if options.id in self._chardevs:
            raise QmpError(f"Chardev '{options.id}' already exists")
        if isinstance(options, Socket) and options.host is not None and not self._allow_tcp_monitor:
            raise QmpError(
                "a monitor on TCP is open to everybody who reaches the port: use a path,"
                " or say --allow-tcp-monitor too"
            )
        device = Chardev(options)
        try:
            await device.open()
        except BaseException:
            await device.close()
            raise
        self._chardevs[device.id] = device

    def _add_monitor(self, options: MonitorOptions) -> None:
        device = self._chardevs.get(options.chardev)
        if device is None:
            raise QmpError(f'chardev "{options.chardev}" not found')
        if options.chardev in self._attached:
            raise QmpError(f"Device '{options.chardev}' is in use")
        self._attached.add(options.chardev)
        device.attach(self._server(options))

    def _server(self, options: MonitorOptions) -> Serve:
        async def serve(channel: Channel) -> None:
            if options.mode is Mode.READLINE:
                await HumanServer(HumanMonitor(self.daemon, io_output=self.daemon.io_output), channel).run()
                return
            await QmpServer(self.daemon, self._commands, channel, pretty=options.pretty).run()

        return serve

    def write_pidfile(self, path: str) -> None:
        """Write the process id into a file.

        Raises:
            Failure: The system refuses.
        """
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            text = f"cannot create PID file: Could not create '{path}': {error.strerror}"
            raise Failure(text) from error
        self.pidfile = path

    async def close(self) -> None:
        """Let the monitor's clients go, then end the daemon."""
        for device in self._chardevs.values():
            await device.close()
        await self.daemon.close()


_IMPLIED = {
    "--blockdev": "driver",
    "--chardev": "backend",
    "--export": "type",
    "--monitor": "chardev",
    "--nbd-server": None,
    "--object": "qom-type",
}
"""The option whose value may stand first without a name."""
