"""Making new local files under the name of their protocol: what raw does.

Owns: the options under that name, where those of files are the format's own.
"""

from dataclasses import dataclass

from vblk.drivers.raw_create import NewRawImage, plan_raw
from vblk.graph.creation import Creator, FileOptions, Wish
from vblk.options import Size
from vblk.options.creation import described


@dataclass(slots=True)
class LocalFileOptions(FileOptions):
    """The options of `-o` for files."""

    size: Size | None = described(None, "Virtual disk size")


class LocalFileCreator(Creator[LocalFileOptions]):
    """Makes files."""

    options = LocalFileOptions

    async def plan(self, wish: Wish[LocalFileOptions]) -> NewRawImage:
        """Check the size and the preallocation."""
        return plan_raw(wish.size, wish.options)


CREATOR = LocalFileCreator()
