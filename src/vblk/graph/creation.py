"""What a format says of how its images are made.

Owns: the seam between a format's creation and whoever makes images: what was
asked for (`Wish`), what is to be made (`NewImage`), and what brings one from the
other (`Creator`). It makes nothing and knows no format; `vblk.creating` finds the
creator, `vblk.jobs.target` gives the file its name.

Ordering rule: `Creator.plan` refuses what cannot be made before any file is
touched. An image that was made unfinished is no image for others until `finish`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar

from vblk.errors import OptionError
from vblk.graph.node import Node, Preallocation
from vblk.graph.objects import Objects
from vblk.options import Scalar, Size
from vblk.options.creation import described
from vblk.units import MIB


@dataclass(slots=True)
class FileOptions:
    """How the local file below an image is made; the fields are QEMU's options.

    `nocow` asks btrfs to write in place; `extent_size_hint`, in bytes, asks XFS
    for extents of that size, 0 for none. `preallocation` is kept as it was
    written: which modes there are, the format says.
    """

    nocow: bool = described(False, "Turn off copy-on-write (valid only on btrfs)")
    preallocation: str = described("off", "Preallocation mode (allowed values: off, falloc, full)")
    extent_size_hint: Size = described(Size(MIB), "Extent size hint for the image file, 0 to disable")

    def __post_init__(self) -> None:
        """Check the hint, which the system takes in 32 bits."""
        if self.extent_size_hint >= 1 << 32:
            raise OptionError("Extent size hint is too large")

    def mode(self) -> Preallocation:
        """Return the mode of preallocation.

        Raises:
            OptionError: There is none of that name, or not for files.
        """
        try:
            mode = Preallocation(self.preallocation)
        except ValueError:
            raise OptionError(f"invalid parameter value: {self.preallocation}") from None
        if mode is Preallocation.METADATA:
            raise OptionError(f"Unsupported preallocation mode: {self.preallocation}")
        return mode


OptionsT = TypeVar("OptionsT")


class Backing(NamedTuple):
    """What a new image is to stand on.

    `name` and `format` are as the user said them, `path` is where that is from
    here; `node` is the open image, None if its user did not want it opened.
    """

    name: str
    format: str | None
    path: str
    node: Node | None


@dataclass(frozen=True, slots=True)
class Wish(Generic[OptionsT]):
    """What was asked for. `filename` is the image's final name; `size` is in bytes."""

    filename: str
    size: int
    options: OptionsT
    file: FileOptions = field(default_factory=FileOptions)
    backing: Backing | None = None
    objects: Objects = field(default_factory=Objects)


class NewImage(ABC):
    """An image to be made: everything is decided, and within its limits.

    `size` is the disk's, in bytes. `own` are the options with which the image is
    opened until it is finished. `backing` stands behind it, if anything does, and
    is open. `allocation_unit` is as a node's. `reads_as_zeros` says what is in a
    new file's disk; encrypted ones hold noise.
    """

    driver: ClassVar[str]
    reads_as_zeros: ClassVar[bool] = True
    size: int
    file: FileOptions
    own: Mapping[str, Scalar] = {}
    backing: Node | None = None
    allocation_unit: int = 0

    @abstractmethod
    def file_length(self, data: int) -> int:
        """Return how long the file is, in bytes, when `data` bytes in whole allocation units have space."""

    @abstractmethod
    async def create(self, leaf: Node, *, durable: bool, unfinished: bool) -> None:
        """Make the image in `leaf`, which is open for writing; what it holds is lost.

        Args:
            leaf: A file, or a device: then its `driver` says so.
            durable: Without, nothing is flushed.
            unfinished: Mark it, where the format can: nobody may take it for an
                image before `finish`.

        Raises:
            BlockError: Making it failed; what is there is no image.
        """

    @abstractmethod
    async def finish(self, leaf: Node, *, durable: bool) -> None:
        """Take the mark of an unfinished image away. The image is not open."""


class Creator(ABC, Generic[OptionsT]):
    """How images of one format are made.

    `options` is the dataclass of the format's `-o`: every field is `described`,
    and there is a `size`. A format whose images stand on others has the options
    `backing_file` and `backing_fmt`; `backing_format` names the only format that
    they may have. `opens_backing`: not even `-u` can do without opening it.
    """

    options: type[OptionsT]
    backing_format: ClassVar[str | None] = None
    opens_backing: ClassVar[bool] = False

    @abstractmethod
    async def plan(self, wish: Wish[OptionsT]) -> NewImage:
        """Decide what is made.

        Raises:
            OptionError: The image cannot be made so.
            BlockError: What it is to stand on cannot be read.
        """
