"""The commands of the storage daemon.

Owns: the joining of their tables. Each module has a `TABLE` of its own.
"""

from vblk.monitor.commands import exports, jobs, nodes, objects, session
from vblk.monitor.table import CommandTable

__all__ = ["daemon_commands"]


def daemon_commands() -> CommandTable:
    """Return every command of the storage daemon."""
    return CommandTable(session.TABLE, nodes.TABLE, exports.TABLE, jobs.TABLE, objects.TABLE)
