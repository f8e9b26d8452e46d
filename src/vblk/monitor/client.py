"""What the monitor keeps for one connection: its session, and the descriptors it was sent.

Owns: nothing that outlives the connection.
"""

import os

from vblk.monitor.channel import Channel
from vblk.monitor.table import CommandTable
from vblk.wire.qmp import QmpError, QmpSession


class Client:
    """One connection of a QMP client."""

    def __init__(self, session: QmpSession, channel: Channel, commands: CommandTable) -> None:
        self.session = session
        self.channel = channel
        self.commands = commands
        self._named: dict[str, int] = {}

    def take_sent(self) -> int:
        """Return the descriptor that came with the command, for the caller to close.

        Raises:
            QmpError: None came.
        """
        descriptor = self.channel.take_descriptor()
        if descriptor is None:
            raise QmpError("No file descriptor supplied via SCM_RIGHTS")
        return descriptor

    def keep(self, name: str) -> None:
        """Keep the descriptor that came with the command under a name; an older one of it goes.

        Raises:
            QmpError: None came, or the name looks like a number.
        """
        descriptor = self.take_sent()
        if name[:1].isdigit():
            os.close(descriptor)
            raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
        older = self._named.pop(name, None)
        if older is not None:
            os.close(older)
        self._named[name] = descriptor

    def take(self, name: str) -> int:
        """Return the descriptor of that name, for the caller to close.

        Raises:
            QmpError: There is none.
        """
        try:
            return self._named.pop(name)
        except KeyError:
            raise QmpError(f"File descriptor named '{name}' not found") from None

    def drop(self, name: str) -> None:
        """Close the descriptor of that name.

        Raises:
            QmpError: There is none.
        """
        os.close(self.take(name))

    def close(self) -> None:
        """Close what was kept, and the connection."""
        for descriptor in self._named.values():
            os.close(descriptor)
        self._named.clear()
        self.channel.close()
