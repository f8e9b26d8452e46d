"""Dirty bitmaps that a file beside the image keeps: for raw and VHDX, which have no place for them.

Owns: the marks of a node's persistent bitmaps on their way from and to that file, and
the flag that says who trusts it. What its bytes mean is `vblk.formats.bitmap_sidecar`'s,
when it is read and written `vblk.drivers.bitmaps_beside`'s.

Ordering rule: the file is written under another name first, and has its own durably, so
that it is whole at any instant.
"""

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from vblk.aio.engine import Engine, storage_error
from vblk.aio.file_calls import sync_folder
from vblk.errors import CorruptImage, GraphError, OptionError
from vblk.formats.bitmap_sidecar import (
    COUNT_MAX,
    DATA_MAX,
    GRANULARITY_BITS,
    HEAD_MAX,
    PLACE,
    Content,
    KeptBitmap,
    bits_length,
    decode,
    encode,
)
from vblk.graph.dirty_bitmap import DirtyBitmap
from vblk.graph.node import Leaf
from vblk.graph.recording import put_bitmap

if TYPE_CHECKING:
    from vblk.drivers.bitmaps_beside import BitmapsBeside


class Sidecar:
    """The file beside one image; `kept` is what it has, `trouble` why it is left alone."""

    def __init__(self, node: "BitmapsBeside", leaf: Leaf, engine: Engine, path: str) -> None:
        self.path = path
        self.kept: tuple[KeptBitmap, ...] = ()
        self.trouble: str | None = None
        self._node = node
        self._leaf = leaf
        self._engine = engine

    async def load(self) -> None:
        """Give the node the bitmaps that it has not."""
        node = self._node
        try:
            content = decode(await self._engine.run(self._read))
            self._adopt(content)
        except (CorruptImage, OptionError) as error:
            self.trouble = error.message
            node.warnings.append(f"the bitmaps in '{self.path}' are not used: {error.message}")

    def _adopt(self, content: Content) -> None:
        node = self._node
        if content.format != node.driver:
            self.trouble = f"it is of a disk of format {content.format}"
            return
        is_same = (content.identity, content.size) == (self._identity(), node.size)
        for kept, bits in zip(content.bitmaps, content.bits, strict=True):
            if kept.name in node.bitmaps:
                continue
            bitmap = DirtyBitmap(kept.name, node.size, kept.granularity, enabled=kept.enabled)
            bitmap.persistent = True
            if kept.in_use or not is_same:
                bitmap.inconsistent = True
                bitmap.enabled = False
            else:
                for start, piece in bits:
                    bitmap.set_bits_at(start, piece)
            put_bitmap(node, bitmap)
        if not is_same and not all(kept.in_use for kept in content.bitmaps):
            node.warnings.append("the disk was changed by a program without bitmaps: they are inconsistent")
        self.kept = content.bitmaps

    async def flag(self) -> None:
        """Let nobody trust what the file has, durably."""
        if self.trouble is None and self.kept:
            await self._write([_flagged(kept) for kept in self.kept])

    async def store(self) -> None:
        """Write the node's persistent bitmaps; without any the file goes."""
        node = self._node
        bitmaps = [each for each in node.bitmaps.values() if each.persistent]
        if bitmaps:
            await self._write([_with_bits(each) for each in bitmaps])
        elif self.kept:
            await self._engine.run(self._remove)
            self.kept = ()

    def require_storable(self, name: str, granularity: int) -> None:
        """Raise GraphError when one more bitmap cannot be kept."""
        node = self._node
        reason: str | None = None
        if self.trouble is not None:
            reason = f"'{self.path}' is in the way: {self.trouble}"
        elif granularity.bit_length() - 1 not in GRANULARITY_BITS:
            reason = f"Granularity exceeds maximum ({1 << GRANULARITY_BITS[-1]} bytes)"
        elif sum(each.persistent for each in node.bitmaps.values()) >= COUNT_MAX:
            reason = "Maximum number of persistent bitmaps is already reached"
        elif bits_length(node.size, granularity) > DATA_MAX:
            reason = "Too much space will be occupied by the bitmap. Use larger granularity"
        if reason is not None:
            raise GraphError(f"Can't make bitmap '{name}' persistent in '{node.name}': {reason}")

    def _identity(self) -> str:
        descriptor = self._leaf.descriptor()
        assert descriptor is not None
        return self._node.identity(os.fstat(descriptor))

    def _read(self) -> bytes:
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
                data = file.read(HEAD_MAX + DATA_MAX + 1)
        except OSError as error:
            raise storage_error(error, filename=self.path) from error
        return data

    async def _write(self, bitmaps: list[tuple[KeptBitmap, tuple[bytes, ...]]]) -> None:
        data = encode(self._node.driver, self._identity(), self._node.size, bitmaps)
        await self._engine.run(lambda: self._replace(data))
        self.kept = tuple(kept for kept, _ in bitmaps)

    def _replace(self, data: bytes) -> None:
        fresh = f"{self.path}-new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(fresh)
            with open(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
            ) as file:
                descriptor = self._leaf.descriptor()
                assert descriptor is not None
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o666)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(fresh, self.path)
            sync_folder(os.path.dirname(self.path))
        except OSError as error:
            with suppress(OSError):
                os.unlink(fresh)
            raise storage_error(error, filename=self.path, operation="write") from error

    def _remove(self) -> None:
        try:
            os.unlink(self.path)
            sync_folder(os.path.dirname(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, filename=self.path, operation="delete") from error


def _flagged(kept: KeptBitmap) -> tuple[KeptBitmap, tuple[bytes, ...]]:
    return KeptBitmap(kept.name, kept.granularity, kept.enabled, True), ()


def _with_bits(bitmap: DirtyBitmap) -> tuple[KeptBitmap, tuple[bytes, ...]]:
    """Return a bitmap as it is kept; of one that is not to be trusted no bits."""
    places: list[tuple[int, int]] = []
    pieces: list[bytes] = []
    length = 0 if bitmap.inconsistent else bits_length(bitmap.size, bitmap.granularity)
    for start in range(0, length, PLACE):
        piece = bitmap.bits_at(start, min(PLACE, length - start))
        if piece:
            places.append((start, len(piece)))
            pieces.append(piece)
    kept = KeptBitmap(bitmap.name, bitmap.granularity, bitmap.enabled, bitmap.inconsistent, tuple(places))
    return kept, tuple(pieces)
