"""The commands of the storage daemon.

Owns: the joining of their tables. Each module has a `TABLE` of its own.
"""

from vblk.monitor.commands import (
    committing,
    creating,
    descriptors,
    exports,
    jobs,
    mirroring,
    nodes,
    objects,
    qom,
    quorum,
    reopening,
    session,
    streaming,
    surgery,
    transaction,
)
from vblk.monitor.table import CommandTable

_MODULES = (
    session,
    nodes,
    reopening,
    surgery,
    quorum,
    exports,
    creating,
    jobs,
    mirroring,
    committing,
    streaming,
    objects,
    qom,
    descriptors,
    transaction,
)

__all__ = ["daemon_commands"]


def daemon_commands() -> CommandTable:
    """Return every command of the storage daemon."""
    return CommandTable(*(module.TABLE for module in _MODULES))
