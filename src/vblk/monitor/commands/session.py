"""Commands about the monitor itself: negotiation, versions, names, and the end.

Owns: nothing; what they show belongs to others.
"""

from typing import Any

from vblk.monitor.client import Client
from vblk.monitor.daemon import Daemon
from vblk.monitor.human import HumanMonitor
from vblk.monitor.introspection import Introspection
from vblk.monitor.schema import Capabilities, HumanLine, Named, Version, VersionTriple
from vblk.monitor.table import CommandTable

TABLE = CommandTable()


@TABLE.command("qmp_capabilities", for_client=True)
async def qmp_capabilities(daemon: Daemon, client: Client, arguments: Capabilities) -> None:
    """End the negotiation."""
    client.session.negotiate(arguments.enable)


@TABLE.command("query-version")
async def query_version(daemon: Daemon) -> Version:
    """Tell which QEMU this monitor follows, and what it is."""
    return Version(qemu=VersionTriple(**daemon.version["qemu"]), package=daemon.version["package"])


@TABLE.command("query-commands", for_client=True)
async def query_commands(daemon: Daemon, client: Client) -> list[Named]:
    """Name every command of this monitor."""
    return [Named(name=command.name) for command in client.commands]


@TABLE.command("query-qmp-schema", for_client=True)
async def query_qmp_schema(daemon: Daemon, client: Client) -> list[dict[str, Any]]:
    """Describe every command, event and type of this monitor."""
    schema = Introspection()
    schema.describe_command_table(client.commands)
    schema.describe_events(daemon.events)
    return schema.entries


@TABLE.command("human-monitor-command")
async def human_monitor_command(daemon: Daemon, arguments: HumanLine) -> str:
    """Carry out a line of the human monitor."""
    return await HumanMonitor(daemon, io_output=daemon.io_output).execute(arguments.command_line)


@TABLE.command("quit", out_of_band=True)
async def quit(daemon: Daemon) -> None:
    """End the daemon, cleanly."""
    daemon.ended.set()
