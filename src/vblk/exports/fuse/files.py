"""What the kernel is shown: a disk as one file, alone or in a folder.

Owns: numbers, names and attributes of these files, and which changes of them are
allowed. It knows no device and no disk: sizes are told to it.
"""

import errno
import os
import stat
import time
from typing import Final

from vblk.wire.fuse.numbers import ROOT, SetFlag
from vblk.wire.fuse.replies import Attributes, Entry
from vblk.wire.fuse.requests import SetAttributes

_IN_FOLDER: Final = 2
_SECTOR: Final = 512
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITE: Final = 0o222


class Files:
    """One file that is the root, or a root folder with one file.

    `disk` is the number of the file that is the disk. It is its user's own, to be
    read, and written if the export is for writing.
    """

    def __init__(self, name: bytes | None, *, writable: bool, allow_other: bool) -> None:
        """Show a file under a name in a folder, or without a name alone."""
        self._name = name
        self._writable = writable
        self._allow_other = allow_other
        self.disk = ROOT if name is None else _IN_FOLDER
        self._mode = stat.S_IFREG | (0o600 if writable else 0o400)
        self._uid = os.getuid()
        self._gid = os.getgid()
        self._atime = self.mtime = time.time_ns()

    @property
    def root_mode(self) -> int:
        """The kind of the file that is mounted."""
        return stat.S_IFREG if self._name is None else stat.S_IFDIR

    def find(self, folder: int, name: bytes) -> bool:
        """Tell whether a name of a folder is the disk's."""
        return folder == ROOT != self.disk and name == self._name

    def attributes(self, node: int, size: int, allocated: int | None) -> Attributes:
        """Return what stat(2) says of a file, given the disk's size and what it takes, in bytes."""
        if node != self.disk:
            mode = stat.S_IFDIR | 0o500 | (0o055 if self._allow_other else 0)
            return Attributes(ROOT, mode, links=2, uid=self._uid, gid=self._gid, mtime=self.mtime)
        taken = size if allocated is None else allocated
        blocks = (taken + _SECTOR - 1) // _SECTOR
        return Attributes(node, self._mode, size, blocks, 1, self._uid, self._gid, self._atime, self.mtime)

    def entries(self) -> list[Entry]:
        """Return the entries of the root folder."""
        assert self._name is not None
        folder = [Entry(name, ROOT, stat.S_IFDIR) for name in (b".", b"..")]
        return [*folder, Entry(self._name, self.disk, stat.S_IFREG)]

    def change(self, wanted: SetAttributes) -> int:
        """Set attributes of the disk's file, but its size; return an errno, 0 when that is done.

        Whoever may not come gets no permissions, and nobody those to write what is for reading only.
        """
        which = wanted.which
        if which & SetFlag.MODE and not self._allow_other and wanted.mode & _OTHERS:
            return errno.EPERM
        if which & SetFlag.MODE and not self._writable and wanted.mode & _WRITE:
            return errno.EROFS
        if which & (SetFlag.UID | SetFlag.GID) and not self._allow_other:
            return errno.ENOTSUP
        if which & SetFlag.MODE:
            self._mode = stat.S_IFREG | stat.S_IMODE(wanted.mode)
        if which & SetFlag.UID:
            self._uid = wanted.uid
        if which & SetFlag.GID:
            self._gid = wanted.gid
        if which & SetFlag.ATIME:
            self._atime = time.time_ns() if which & SetFlag.ATIME_NOW else wanted.atime
        if which & SetFlag.MTIME:
            self.mtime = time.time_ns() if which & SetFlag.MTIME_NOW else wanted.mtime
        return 0
