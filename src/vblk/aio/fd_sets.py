"""Sets of descriptors that others opened for us: files under the names `/dev/fdset/N`.

Owns: the descriptors, and which of a set fits an opening. Who passes them is no
concern of it.

Source: QEMU's QMP reference, `add-fd`.
"""

import errno
import fcntl
import os
from typing import Final, NamedTuple

from vblk.errors import OptionError, StorageError

PREFIX: Final = "/dev/fdset/"


class PassedFd(NamedTuple):
    """One descriptor of a set, and what its giver says of it."""

    fd: int
    opaque: str | None


class FdSets:
    """Descriptors by the numbers of their sets. They are closed when they are removed."""

    def __init__(self) -> None:
        self._sets: dict[int, list[PassedFd]] = {}

    def all(self) -> list[tuple[int, list[PassedFd]]]:
        """Return the sets, the highest number first."""
        return sorted(((number, list(fds)) for number, fds in self._sets.items()), reverse=True)

    def add(self, fd: int, number: int | None = None, opaque: str | None = None) -> int:
        """Take a descriptor over, into a set or a new one; return the set's number."""
        if number is None:
            number = next(free for free in range(len(self._sets) + 1) if free not in self._sets)
        self._sets.setdefault(number, []).append(PassedFd(fd, opaque))
        return number

    def remove(self, number: int, fd: int | None = None) -> bool:
        """Close a descriptor of a set, or all of them; tell whether there was one."""
        gone = [each for each in self._sets.get(number, ()) if fd in (None, each.fd)]
        for each in gone:
            self._sets[number].remove(each)
            os.close(each.fd)
        if number in self._sets and not self._sets[number]:
            del self._sets[number]
        return bool(gone)

    def close(self) -> None:
        """Close every descriptor."""
        for number in list(self._sets):
            self.remove(number)

    def duplicate(self, filename: str, flags: int) -> int:
        """Return a copy of the descriptor that was opened as `flags` want it.

        Raises:
            OptionError: The name is none of a set.
            StorageError: There is no such set, or none in it that fits.
        """
        digits = filename.removeprefix(PREFIX)
        if not (digits.isascii() and digits.isdecimal()):
            raise OptionError(f"Could not parse fdset {filename}")
        wanted = flags & os.O_ACCMODE
        fds = self._sets.get(int(digits))
        for each in fds or ():
            if fcntl.fcntl(each.fd, fcntl.F_GETFL) & os.O_ACCMODE == wanted:
                copy = fcntl.fcntl(each.fd, fcntl.F_DUPFD_CLOEXEC, 0)
                fcntl.fcntl(copy, fcntl.F_SETFL, flags & (os.O_DIRECT | os.O_DSYNC))
                return copy
        number = errno.ENOENT if fds is None else errno.EACCES
        shown = flags & ~(os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        text = f"Could not dup FD for {filename} flags {shown:x}: {os.strerror(number)}"
        raise StorageError(number, text, filename=filename)
