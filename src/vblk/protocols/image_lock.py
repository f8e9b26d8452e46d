"""Locks between programs that use one image file, as QEMU takes them.

Owns: the byte-range locks that publish what a user of an image does and what it
forbids to others, and the search for whoever holds a lock against us. It knows
permissions, not nodes.

A user holds a shared lock on byte 100 + i for each permission bit i that it
uses, and on byte 200 + i for each bit that it does not share. Nobody ever locks
exclusively: after taking its own locks a user asks the kernel whether somebody
else holds the opposite byte. Taking first and asking then means that of two
users who come at once at least one sees the other.

The locks belong to an open file description of their own, so they stay as they
are while the data's descriptor is replaced by another one, and go when the lock
is closed or the process ends, whatever its other descriptors do.
Source: the behaviour of QEMU's tools as seen with strace(1); fcntl_locking(2).
"""

import errno
import fcntl
import os
import struct
from typing import NamedTuple

from vblk.aio.file_calls import open_again
from vblk.errors import PermissionConflict, StorageError
from vblk.graph.edge import Permission

_USED = 100
_UNSHARED = 200
_FLOCK = struct.Struct("hhqqi4x")
"""l_type, l_whence, l_start, l_len, l_pid."""

_BITS = (
    (0, Permission.CONSISTENT_READ, "consistent read"),
    (1, Permission.WRITE, "write"),
    (2, Permission.WRITE_UNCHANGED, "write unchanged"),
    (3, Permission.RESIZE, "resize"),
)
_TAKEN = frozenset({errno.EAGAIN, errno.EACCES})
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})

_DESCRIPTORS_MAX = 200_000
"""How many open descriptors of the machine are looked at, at most, for a holder."""


class Holder(NamedTuple):
    """A process that has an image locked, and how."""

    pid: int
    command: str
    writing: bool

    def __str__(self) -> str:
        who = "this process" if self.pid == os.getpid() else f"process {self.pid} ({self.command})"
        return f"{who} has it open for {'writing' if self.writing else 'reading'}"


class ImageLocked(PermissionConflict):
    """Another user of an image excludes this one.

    `message` is QEMU's text, of two lines; `holders` are the processes that
    could be found, and `str` adds them.
    """

    def __init__(self, message: str, *, filename: str, holders: tuple[Holder, ...]) -> None:
        super().__init__(f"{message}\nIs another process using the image [{filename}]?", filename=filename)
        self.holders = holders
        for holder in holders:
            self.add_note(str(holder))

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"{self.filename}: {holder}" for holder in self.holders)])


class ImageLock:
    """The locks of one user on one open file.

    Concurrency: the methods block briefly; callers run them on a worker, one at
    a time.
    """

    def __init__(self, data_fd: int, filename: str, *, required: bool) -> None:
        """Prepare to lock the file behind `data_fd`, without locking anything yet.

        `required` makes it an error that the system or the file system has no
        such locks; otherwise the image is used without.
        """
        self._filename = filename
        self._required = required
        self._held: frozenset[int] = frozenset()
        self._fd = open_again(data_fd, filename, os.O_RDONLY | os.O_NONBLOCK)

    @property
    def held_bytes(self) -> frozenset[int]:
        """The bytes of the file that are locked now."""
        return self._held

    def change(self, permissions: Permission, shared: Permission) -> None:
        """Publish `permissions` and what is `shared` with others, instead of what was.

        Raises:
            ImageLocked: Somebody excludes it, or is excluded by it. What was
                published before is published still.
            StorageError: The file has no locks, and they are required.
        """
        used = {_USED + index for index, bit, _ in _BITS if permissions & bit}
        unshared = {_UNSHARED + index for index, bit, _ in _BITS if not shared & bit}
        wanted = frozenset(used | unshared)
        added = sorted(wanted - self._held)
        try:
            for byte in added:
                self._lock(byte)
            self._check(permissions, shared)
        except BaseException:
            self._unlock_all(added)
            raise
        self._unlock_all(sorted(self._held - wanted))
        self._held = wanted

    def _lock(self, byte: int) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _pack(fcntl.F_RDLCK, byte))
        except OSError as error:
            if error.errno in _TAKEN:
                raise self._conflict(f"Failed to lock byte {byte}", byte) from error
            self._refuse_or_go_without(error)

    def _check(self, permissions: Permission, shared: Permission) -> None:
        for index, bit, name in _BITS:
            if permissions & bit and self._taken_by_others(_UNSHARED + index):
                raise self._conflict(f'Failed to get "{name}" lock', _UNSHARED + index)
            if not shared & bit and self._taken_by_others(_USED + index):
                raise self._conflict(f'Failed to get shared "{name}" lock', _USED + index)

    def _taken_by_others(self, byte: int) -> bool:
        try:
            answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _pack(fcntl.F_WRLCK, byte))
        except OSError as error:
            self._refuse_or_go_without(error)
            return False
        kind: int = _FLOCK.unpack(answer)[0]
        return kind != fcntl.F_UNLCK

    def _refuse_or_go_without(self, error: OSError) -> None:
        number = error.errno or errno.EIO
        if self._required or number not in _UNSUPPORTED:
            raise StorageError(
                number, f"Failed to lock the image: {os.strerror(number)}", filename=self._filename
            ) from error

    def _unlock_all(self, positions: list[int]) -> None:
        for byte in positions:
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _pack(fcntl.F_UNLCK, byte))
            except OSError as error:
                self._refuse_or_go_without(error)

    def _conflict(self, message: str, byte: int) -> ImageLocked:
        return ImageLocked(message, filename=self._filename, holders=find_holders(self._fd, byte))

    def close(self) -> None:
        """Release all locks. Idempotent."""
        fd, self._fd = self._fd, -1
        self._held = frozenset()
        if fd >= 0:
            os.close(fd)


def _pack(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def find_holders(fd: int, byte: int) -> tuple[Holder, ...]:
    """Return the processes with a lock on `byte` of the file behind `fd`, not by `fd` itself.

    Processes of other users are found only with the right to look at them. The
    kernel gives no process for such locks; but it lists them under each
    descriptor of a process, which is where they are looked up. Bounded: at most
    `_DESCRIPTORS_MAX` descriptors are looked at.
    """
    identity = _identity(fd)
    holders: dict[int, Holder] = {}
    looked_at = 0
    for pid in _numbers_in("/proc"):
        for number in _numbers_in(f"/proc/{pid}/fdinfo"):
            looked_at += 1
            if looked_at > _DESCRIPTORS_MAX:
                return tuple(holders.values())
            if pid == os.getpid() and number == fd:
                continue
            ranges = _lock_ranges(f"/proc/{pid}/fdinfo/{number}", identity)
            if any(first <= byte <= last for first, last in ranges):
                writing = any(first <= _USED + 1 <= last for first, last in ranges)
                holders[pid] = Holder(pid, _command_of(pid), writing)
    return tuple(holders.values())


def _identity(fd: int) -> str:
    """Return the name of a file in lists of locks: device and inode.

    Taken from the locks of `fd` itself where it has some: on btrfs the kernel
    lists another device there than fstat(2) tells.
    """
    for line in _read_text(f"/proc/self/fdinfo/{fd}").splitlines():
        words = line.split()
        if len(words) == 9 and words[0] == "lock:":
            return words[6]
    status = os.fstat(fd)
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"


def _numbers_in(folder: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except OSError:
        return []  # it ended, or is not ours to see


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def _lock_ranges(path: str, identity: str) -> list[tuple[int, int]]:
    """Return the (first, last) bytes of a file that a descriptor has locked.

    A line reads `lock: 1: OFDLCK ADVISORY READ -1 fe:00:2146354 100 101`.
    """
    ranges: list[tuple[int, int]] = []
    for line in _read_text(path).splitlines():
        words = line.split()
        if len(words) == 9 and words[0] == "lock:" and words[6] == identity:
            last = 1 << 63 if words[8] == "EOF" else int(words[8])
            ranges.append((int(words[7]), last))
    return ranges


def _command_of(pid: int) -> str:
    return _read_text(f"/proc/{pid}/comm").strip() or "unknown"
