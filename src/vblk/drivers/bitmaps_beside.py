"""Images whose format keeps no dirty bitmaps: when those beside them are read, flagged and stored.

Owns: the name of the file beside the image, and the moments. The file itself is
`vblk.drivers.bitmap_sidecar`'s, which is loaded where there is one, or is to be.

Ordering rule: while the image is open for writing all of its bitmaps are flagged in use,
durably, from before the first change of the disk on; so whoever opens it after a crash
does not trust them. They are stored when the disk's bytes are stable and nobody writes
any more.
"""

import os
import stat
from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

from vblk.aio.engine import Engine
from vblk.aio.file_calls import hidden_beside
from vblk.graph.mapper import Mapper
from vblk.graph.node import Leaf

if TYPE_CHECKING:
    from vblk.drivers.bitmap_sidecar import Sidecar


def sidecar_path(path: str) -> str:
    """Return the name of the file that keeps the bitmaps of the image at a path."""
    return hidden_beside(path, "bitmaps")


def forget_bitmaps(path: str) -> None:
    """Remove what was kept of an image that is not there any more."""
    with suppress(OSError):
        os.unlink(sidecar_path(path))


def move_bitmaps(path: str, to: str) -> None:
    """Let what is kept of an image follow to its new name; what was kept of another one there goes."""
    try:
        os.rename(sidecar_path(path), sidecar_path(to))
    except OSError:
        forget_bitmaps(to)


class BitmapsBeside(Mapper):
    """An image whose persistent dirty bitmaps are kept in a file beside it, where it is a local file."""

    _engine: Engine | None = None
    _sidecar: "Sidecar | None" = None

    @abstractmethod
    def identity(self, status: os.stat_result) -> str:
        """Return what is another when the disk has other bytes; `status` is the file's."""

    @property
    def has_bitmaps_beside(self) -> bool:
        """Whether the image as a whole is what the file below holds."""
        return True

    async def begin_bitmaps(self, engine: Engine) -> None:
        """Have the bitmaps that are kept; while the image may be written nobody trusts those of the file.

        Raises:
            StorageError: They cannot be read or flagged, and would be lost by a change of the disk.
        """
        self._engine = engine
        await self._resume_bitmaps()

    async def _resume_bitmaps(self) -> None:
        """Take up the bitmaps again, whether the image may be written now or not."""
        if self._is_beside() and (sidecar := self._beside()) is not None:
            await sidecar.load()
            if not self.read_only:
                await sidecar.flag()

    async def _end_bitmaps(self) -> None:
        """Store the bitmaps that are to be kept; the disk's bytes are stable.

        Raises:
            NoSpace: There is no room; those of the file stay flagged.
        """
        if self._sidecar is not None:
            await self._sidecar.store()

    def require_storable(self, name: str, granularity: int) -> None:
        """Raise GraphError when one more bitmap cannot be kept."""
        sidecar = self._beside()
        if sidecar is None:
            super().require_storable(name, granularity)
        else:
            sidecar.require_storable(name, granularity)

    def _is_beside(self) -> bool:
        """Tell whether there is such a file."""
        path = self._path_beside()
        return path is not None and os.path.lexists(path)

    def _path_beside(self) -> str | None:
        """Return the name of the file beside the image; None where the image is no file of its own."""
        if self._engine is None or not self.has_bitmaps_beside or not isinstance(self._file, Leaf):
            return None
        path = _path_of(self._file)
        return None if path is None else sidecar_path(path)

    def _beside(self) -> "Sidecar | None":
        """Return the file beside the image, which need not be there."""
        if self._sidecar is None and (path := self._path_beside()) is not None:
            from vblk.drivers.bitmap_sidecar import Sidecar

            assert isinstance(self._file, Leaf)
            assert self._engine is not None
            self._sidecar = Sidecar(self, self._file, self._engine, path)
        return self._sidecar

    def _kept_bitmaps(self) -> dict[str, object]:
        """Return what `info` shows of the bitmaps in the file; nothing where there are none."""
        kept = () if self._sidecar is None else self._sidecar.kept
        return {"bitmaps": [each.describe() for each in kept]} if kept else {}


def _path_of(leaf: Leaf) -> str | None:
    """Return where the file of a leaf is now; None where it is no regular file with a name."""
    descriptor = leaf.descriptor()
    if descriptor is None:
        return None
    try:
        status = os.fstat(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return path if stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.stat(path)) else None
    except OSError:
        return None
