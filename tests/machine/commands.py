"""The commands of a machine's QMP monitor that the storage daemon has not.

Owns: how drives are shown, `eject`, the threads that exports may name, and a machine's end.
"""

from typing import Any

from tests.machine.drives import Drive
from tests.machine.machine import Machine
from vblk.graph.statistics import Statistics, block_stats
from vblk.monitor.commands import daemon_commands, exports, qom
from vblk.monitor.commands.nodes import describe_node
from vblk.monitor.schema import FuseExportOptions, NbdExportOptions, Object
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


@TABLE.command("quit")
async def quit(machine: Machine) -> None:
    """Say that the machine is shut down, and end."""
    machine.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    for export in list(machine.exports.values()):
        await export.stop(hard=True)
    machine.ended.set()


@TABLE.command("qom-set")
async def qom_set(machine: Machine, arguments: qom.QomValue) -> None:
    """Change a property of an object, or the node of a device."""
    drive = machine.drive_of(arguments.path)
    if drive is None or drive.handle is None or arguments.property != "drive":
        await qom.qom_set(machine, arguments)
    else:
        await machine.put_in(drive, machine.find_either(str(arguments.value)))


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
