"""Making new qcow2 images: the shell around the plan of a creation.

Owns: the options of `-o`, and writing what was planned. What is written is
`vblk.formats.qcow2.create`.

Ordering rule: what stood in the file is gone, durably, before anything new is
written, and the header comes last; so no crash can mix the two.
"""

from dataclasses import dataclass
from typing import ClassVar

from vblk.errors import OptionError
from vblk.formats.qcow2.create import Creation, NewQcow2, plan_creation
from vblk.graph.creation import Creator, FileOptions, NewImage, Wish
from vblk.graph.node import Node
from vblk.opening import FORMATS, KNOWN_ELSEWHERE
from vblk.options import Size
from vblk.options.creation import described
from vblk.units import align_up

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_PREALLOCATIONS = ("off", "metadata", "falloc", "full")


@dataclass(slots=True)
class Qcow2Options:
    """The options of `-o`, QEMU's, in its order."""

    cluster_size: Size = described(Size(65536), "qcow2 cluster size", announced=True)
    extended_l2: bool = described(False, "Extended L2 tables: not in this version", announced=True)
    preallocation: str | None = described(None, "Preallocation mode (allowed values: off)")
    compression_type: str = described(
        "zlib", "Compression method used for image cluster compression", announced=True
    )
    size: Size | None = described(None, "Virtual disk size")
    compat: str | None = described(None, "Compatibility level (v2 [0.10] or v3 [1.1])")
    backing_file: str | None = described(None, "File name of a base image")
    backing_fmt: str | None = described(None, "Image format of the base image")
    lazy_refcounts: bool = described(False, "Postpone refcount updates", announced=True)
    refcount_bits: int = described(16, "Width of a reference count entry in bits", announced=True)


class NewQcow2Image(NewImage):
    """A qcow2 image to be made; its plan is good."""

    driver: ClassVar[str] = "qcow2"

    def __init__(
        self, creation: Creation, size: int, cluster_size: int, file: FileOptions, backing: Node | None
    ) -> None:
        self.size = size
        self.file = file
        self.backing = backing
        self.allocation_unit = cluster_size
        self._creation = creation

    def file_length(self, data: int) -> int:
        """Return the length with all tables, as QEMU counts them, and `data` bytes of clusters."""
        return self._creation.full_tables + data

    async def create(self, leaf: Node, *, durable: bool, unfinished: bool) -> None:
        """Write tables, then the header; nothing marks an image that is not finished."""
        await create_image(leaf, self._creation, durable=durable)

    async def finish(self, leaf: Node, *, durable: bool) -> None:
        """Nothing marks an image that is not finished."""


class Qcow2Creator(Creator[Qcow2Options]):
    """Makes qcow2 images."""

    options = Qcow2Options

    async def plan(self, wish: Wish[Qcow2Options]) -> NewQcow2Image:
        """Check the options, and plan the tables."""
        new = _wanted(wish)
        backing = None if wish.backing is None else wish.backing.node
        size = align_up(wish.size, 512)
        return NewQcow2Image(plan_creation(new), size, new.cluster_size, wish.file, backing)


async def create_image(leaf: Node, creation: Creation, *, durable: bool = True) -> None:
    """Make `leaf`, which is open for writing, a new and empty qcow2 image; what it holds is lost.

    Raises:
        StorageError: Writing failed; what is there is no image.
    """
    if leaf.size and leaf.driver != "host_device":
        await leaf.resize(0)
    elif leaf.size:
        await leaf.write_zeroes(0, creation.length)
    if durable:
        await leaf.flush()
    if leaf.driver != "host_device":
        await leaf.resize(creation.length)
    for at, data in creation.tables:
        await leaf.write(at, data)
    if durable:
        await leaf.flush()
    await leaf.write(0, creation.header)
    if durable:
        await leaf.flush()


def _wanted(wish: Wish[Qcow2Options]) -> NewQcow2:
    options = wish.options
    if options.extended_l2:
        raise OptionError("extended L2 entries (extended_l2) are not in this version of vblk")
    preallocation = options.preallocation or "off"
    if preallocation not in _PREALLOCATIONS:
        raise OptionError(f"Parameter 'preallocation' does not accept value '{preallocation}'")
    if preallocation != "off":
        raise OptionError(f"preallocation={preallocation} of qcow2 images is not in this version of vblk")
    version = _VERSIONS.get(options.compat or "1.1")
    if version is None:
        raise OptionError(f"Parameter 'version' does not accept value '{options.compat}'")
    return NewQcow2(
        wish.size,
        version,
        options.cluster_size,
        options.refcount_bits,
        options.lazy_refcounts,
        options.compression_type,
        None if wish.backing is None else wish.backing.name,
        _backing_format(wish),
    )


def _backing_format(wish: Wish[Qcow2Options]) -> str | None:
    backing = wish.backing
    if backing is None:
        return None
    if backing.format is None:
        detected = "" if backing.node is None else f"\nDetected format of {backing.node.driver}."
        raise OptionError(f"Backing file specified without backing format{detected}")
    if backing.format not in FORMATS and backing.format not in KNOWN_ELSEWHERE:
        raise OptionError(f"Parameter 'backing-fmt' does not accept value '{backing.format}'")
    return backing.format


CREATOR = Qcow2Creator()
