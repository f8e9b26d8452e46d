"""The commands of a machine's QMP monitor that the storage daemon has not.

Owns: how drives are shown, and `eject`.
"""

import hashlib
import sys
from typing import Any

from tests.machine.drives import Drive
from tests.machine.machine import Machine
from vblk.graph.recording import find_bitmap
from vblk.graph.statistics import Statistics, block_stats
from vblk.monitor.commands import daemon_commands, exports
from vblk.monitor.commands.nodes import describe_node
from vblk.monitor.human import HumanMonitor
from vblk.monitor.schema import FuseExportOptions, HumanLine, NbdExportOptions, Object
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import ErrorClass, QmpError

TABLE = CommandTable()


class Eject(Object, kw_only=True):
    """Which drive."""

    device: str | None = None
    id: str | None = None
    force: bool | None = None


@TABLE.command("eject")
async def eject(machine: Machine, arguments: Eject) -> None:
    """Take a medium out."""
    drive = machine.drives.get(arguments.device or "")
    if drive is None:
        raise QmpError(f"Device '{arguments.device}' not found", ErrorClass.DEVICE_NOT_FOUND)
    await machine.eject(drive)


class NbdExport(NbdExportOptions, tag_field="type", tag="nbd"):
    """An export that names the thread which is to serve it; one loop serves all."""

    iothread: str | None = None


@TABLE.command("block-export-add")
async def block_export_add(machine: Machine, arguments: NbdExport | FuseExportOptions) -> None:
    """Export a node."""
    if isinstance(arguments, NbdExport) and arguments.iothread not in (None, *machine.iothreads):
        raise QmpError(f'iothread "{arguments.iothread}" not found')
    await exports.block_export_add(machine, arguments)


class BitmapName(Object):
    """Which bitmap of which drive."""

    node: str
    name: str


@TABLE.command("x-debug-block-dirty-bitmap-sha256")
async def hash_bitmap(machine: Machine, arguments: BitmapName) -> dict[str, str]:
    """Return a number that two bitmaps with the same marks have in common."""
    node = machine.find_either(arguments.node)
    ranges = list(find_bitmap(node, arguments.name).ranges(0, node.size))
    return {"sha256": hashlib.sha256(repr(ranges).encode()).hexdigest()}


@TABLE.command("human-monitor-command")
async def human_monitor_command(machine: Machine, arguments: HumanLine) -> str:
    """Carry out a line of the human monitor; what its `qemu-io` prints goes to standard output."""
    return await HumanMonitor(machine, io_output=_print).execute(arguments.command_line)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@TABLE.command("quit")
async def quit(machine: Machine) -> None:
    """Say that the machine is shut down, and end."""
    machine.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    for export in list(machine.exports.values()):
        await export.stop(hard=True)
    machine.ended.set()


@TABLE.command("query-block")
async def query_block(machine: Machine) -> list[dict[str, Any]]:
    """Show the drives."""
    return [await _shown(drive) for drive in machine.drives.values()]


async def _shown(drive: Drive) -> dict[str, Any]:
    shown: dict[str, Any] = {"device": drive.name, "locked": False, "removable": drive.removable}
    if drive.node is not None:
        shown["inserted"] = await describe_node(drive.node)
    shown["type"] = "unknown"
    if drive.path:
        shown["qdev"] = drive.path
    return shown


@TABLE.command("query-blockstats")
async def query_blockstats(machine: Machine) -> list[dict[str, Any]]:
    """Show what the guest asked of its drives."""
    return [
        {
            "device": drive.name,
            "stats": block_stats(Statistics()) | {"account_invalid": True, "account_failed": True},
            **({} if drive.node is None else {"node-name": drive.node.name}),
            **({"qdev": drive.path} if drive.path else {}),
        }
        for drive in machine.drives.values()
    ]


def machine_commands() -> CommandTable:
    """Return every command of the machine."""
    return CommandTable(daemon_commands(), TABLE)
