"""The commands of the storage daemon.

Owns: the joining of their tables. Each module has a `TABLE` of its own.
"""

from vblk.monitor.commands import (
    creating,
    exports,
    jobs,
    nodes,
    objects,
    reopening,
    session,
    surgery,
    transaction,
)
from vblk.monitor.table import CommandTable

_MODULES = (session, nodes, reopening, surgery, exports, creating, jobs, objects, transaction)

__all__ = ["daemon_commands"]


def daemon_commands() -> CommandTable:
    """Return every command of the storage daemon."""
    return CommandTable(*(module.TABLE for module in _MODULES))
