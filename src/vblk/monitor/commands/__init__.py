"""The commands of the storage daemon.

Owns: the joining of their tables. Each module has a `TABLE` of its own.
"""

from vblk.monitor.commands import jobs, nodes, session
from vblk.monitor.table import CommandTable

__all__ = ["daemon_commands"]


def daemon_commands() -> CommandTable:
    """Return every command of the storage daemon."""
    return CommandTable(session.TABLE, nodes.TABLE, jobs.TABLE)
