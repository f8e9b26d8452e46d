"""Making new raw images: a file or a device as long as the disk.

Owns: the length in whole sectors.
"""

import errno
from dataclasses import dataclass
from typing import ClassVar

from vblk.errors import StorageError
from vblk.graph.creation import Creator, FileOptions, NewImage, Wish
from vblk.graph.node import Node
from vblk.options import Size
from vblk.options.creation import described
from vblk.units import OFFSET_MAX, align_down, align_up

SECTOR = 512
SIZE_MAX = align_down(OFFSET_MAX, SECTOR)
"""The largest raw image in bytes: whole sectors below what a file offset can say."""


@dataclass(slots=True)
class RawOptions:
    """The options of `-o` for raw images."""

    size: Size | None = described(None, "Virtual disk size")


class NewRawImage(NewImage):
    """A raw image to be made; `size` in bytes."""

    driver: ClassVar[str] = "raw"

    def __init__(self, size: int, file: FileOptions | None = None) -> None:
        self.size = size
        self.file = file or FileOptions()
        self._preallocation = self.file.mode()

    def file_length(self, data: int) -> int:
        """Return the disk's size in whole sectors, whatever it holds."""
        return align_up(self.size, SECTOR)

    async def create(self, leaf: Node, *, durable: bool, unfinished: bool) -> None:
        """Give the file its length; a device has to have it."""
        if leaf.driver == "host_device":
            if leaf.size < self.size:
                raise StorageError(
                    errno.ENOSPC, "the device is smaller than the image", filename=leaf.filename
                )
            return
        length = align_up(self.size, SECTOR)
        if leaf.size:
            await leaf.resize(0)
        await leaf.resize(length, preallocation=self._preallocation)

    async def finish(self, leaf: Node, *, durable: bool) -> None:
        """Nothing marks a raw image."""


class RawCreator(Creator[RawOptions]):
    """Makes raw images."""

    options = RawOptions

    async def plan(self, wish: Wish[RawOptions]) -> NewRawImage:
        """Check the size and the preallocation."""
        return plan_raw(wish.size, wish.file)


def plan_raw(size: int, file: FileOptions) -> NewRawImage:
    """Plan a raw image.

    Raises:
        StorageError: It is larger than files can be.
        OptionError: There is no such preallocation for files.
    """
    if size > SIZE_MAX:
        raise StorageError(errno.EFBIG, "File too large")
    return NewRawImage(size, file)


CREATOR = RawCreator()
