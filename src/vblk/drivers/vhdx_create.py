"""Making new VHDX images: the shell around the plan of a creation.

Owns: the options of `-o`, what a child takes from its parent, and carrying out the
stages, with a flush behind each. What is written, and why in this order, is
`vblk.formats.vhdx.create`.

Ordering rule: what stood in the file is gone, durably, before anything new is
written; so no crash can mix the two.
"""

import os
from dataclasses import dataclass
from typing import ClassVar

from vblk.drivers.vhdx import VhdxNode, read_up_to
from vblk.errors import OptionError
from vblk.formats.vhdx import load_image
from vblk.formats.vhdx.create import LOG_SIZE_DEFAULT, NewVhdx, ParentFacts, finished_table, plan_creation
from vblk.formats.vhdx.layout import METADATA_TABLE_SIZE
from vblk.formats.vhdx.locator import KEY_RELATIVE
from vblk.graph.creation import Backing, Creator, FileOptions, NewImage, Wish
from vblk.graph.node import Node, Preallocation
from vblk.options import Size
from vblk.options.creation import described
from vblk.units import MIB, align_up


@dataclass(slots=True)
class VhdxOptions:
    """The options of `-o`; up to `block_state_zero` they are QEMU's, in its order."""

    size: Size | None = described(None, "Virtual disk size; max of 64TB.")
    log_size: Size = described(Size(LOG_SIZE_DEFAULT), "Log size; min 1MB.", announced=True)
    block_size: Size = described(
        Size(0),
        "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
        announced=True,
    )
    subformat: str | None = described(
        None, "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'."
    )
    block_state_zero: bool = described(
        True,
        "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  "
        "Do not set to 'off' when using 'qemu-img convert' with subformat=dynamic.",
    )
    logical_sector_size: Size | None = described(
        None, "Size of the sectors that a guest sees: 512, the default, or 4096; a child has its parent's."
    )
    physical_sector_size: Size | None = described(
        None, "Size of the sectors that a guest is told to align to: 4096, the default, or 512."
    )
    backing_file: str | None = described(None, "The parent, a VHDX image: makes a differencing image.")
    backing_fmt: str | None = described(None, "Format of the parent: vhdx.")


async def create_image(
    leaf: Node,
    new: NewVhdx,
    *,
    preallocation: Preallocation = Preallocation.OFF,
    durable: bool = True,
    unfinished: bool = False,
) -> None:
    """Make `leaf`, which is open for writing, a new and empty VHDX image.

    Args:
        leaf: The file; what it holds is lost.
        new: What is made.
        preallocation: How the host file takes its space; for fixed images, for
            it is of all blocks then.
        durable: Without, nothing is flushed, and a crash may leave anything.
        unfinished: Leave it marked as unfinished, until `finish_image`: who
            opens it meanwhile has to say so, and everybody else is refused.

    Raises:
        OptionError: The image cannot be made so; the file is untouched.
        StorageError: Writing failed; what is there is no image.

    Concurrency: may suspend; nobody else may use the file meanwhile.
    """
    creation = plan_creation(new)
    if preallocation is not Preallocation.OFF and not new.fixed:
        raise OptionError("only a fixed VHDX image can be preallocated", filename=leaf.filename)
    if leaf.size:
        await leaf.resize(0)
        if durable:
            await leaf.flush()
    await leaf.resize(creation.length, preallocation=preallocation)
    for stage in creation.stages[:-1] if unfinished else creation.stages:
        for file_offset, data in stage.writes:
            await leaf.write(file_offset, data)
        if durable:
            await leaf.flush()


async def finish_image(leaf: Node, *, durable: bool = True) -> None:
    """Take the mark of an unfinished image away: it is durable then. Idempotent.

    Args:
        leaf: The file; the image in it is not open, and its log is empty.
        durable: Without, nothing is flushed.

    Raises:
        ImageError: It is not an image, or damaged, or its log is not empty.
    """

    async def read(offset: int, length: int) -> bytes:
        return await read_up_to(leaf, offset, length)

    if durable:
        await leaf.flush()
    image = await load_image(read, leaf.size, filename=leaf.filename, strict=True, unfinished=True)
    at = image.regions.metadata.file_offset
    table = finished_table(await leaf.read(at, METADATA_TABLE_SIZE))
    if table is not None:
        await leaf.write(at, table)
        if durable:
            await leaf.flush()


async def parent_facts(parent: VhdxNode, child_path: str, parent_path: str | None = None) -> ParentFacts:
    """Return what a new child at `child_path` needs to know of its parent.

    Args:
        parent: The open parent; nobody may change it while the child exists.
        child_path: Where the child will stand.
        parent_path: The parent's local path, if it is not its node's filename.

    Concurrency: may suspend.
    """
    image = parent.image
    items = tuple(
        [
            (item, await parent.read_item(item))
            for item in image.unknown_items
            if item.is_virtual_disk and item.length
        ]
    )
    return ParentFacts(
        data_write_guid=image.data_write_guid,
        disk_id=image.disk_id,
        size=image.virtual_size,
        logical_sector_size=image.logical_sector_size,
        physical_sector_size=image.physical_sector_size,
        paths={KEY_RELATIVE: relative_path(child_path, parent_path or parent.filename)},
        items=items,
    )


def relative_path(child_path: str, parent_path: str) -> str:
    r"""Return the parent's path as a child names it: from its own folder, with backslashes."""
    folder = os.path.dirname(os.path.realpath(child_path))
    relative = os.path.relpath(os.path.realpath(parent_path), folder).replace("/", "\\")
    return relative if relative.startswith("..") else ".\\" + relative


class NewVhdxImage(NewImage):
    """A VHDX image to be made."""

    driver: ClassVar[str] = "vhdx"

    def __init__(self, new: NewVhdx, file: FileOptions, parent: VhdxNode | None = None) -> None:
        self.own = {"unfinished": True}
        self.file = file
        self.backing = parent
        self._new = new
        self._preallocation = file.mode()
        if self._preallocation is not Preallocation.OFF and not new.fixed:
            raise OptionError("only a fixed VHDX image can be preallocated")
        creation = plan_creation(new)
        self.size = creation.size
        self.allocation_unit = 0 if new.fixed else creation.block_size
        self._length = creation.length

    def file_length(self, data: int) -> int:
        """Return the length of an empty image and of blocks for `data` bytes."""
        return self._length + data

    async def create(self, leaf: Node, *, durable: bool, unfinished: bool) -> None:
        """Carry out the stages of the creation."""
        await create_image(
            leaf, self._new, preallocation=self._preallocation, durable=durable, unfinished=unfinished
        )

    async def finish(self, leaf: Node, *, durable: bool) -> None:
        """Take the marker away."""
        await finish_image(leaf, durable=durable)


class VhdxCreator(Creator[VhdxOptions]):
    """Makes VHDX images: dynamic, fixed, and differencing where there is a parent.

    A child names its parent by the parent's identity, so that must be read.
    """

    options = VhdxOptions
    backing_format: ClassVar[str | None] = "vhdx"
    opens_backing: ClassVar[bool] = True

    async def plan(self, wish: Wish[VhdxOptions]) -> NewVhdxImage:
        """Decide what is made. As with QEMU, sizes are rounded up: to sectors, and to MiB."""
        options = wish.options
        if options.subformat not in (None, "dynamic", "fixed"):
            raise OptionError(f"Parameter 'subformat' does not accept value '{options.subformat}'")
        parent = None if wish.backing is None else _as_parent(wish.backing)
        facts = None if parent is None else await parent_facts(parent, wish.filename)
        sector = options.logical_sector_size or (512 if facts is None else facts.logical_sector_size)
        new = NewVhdx(
            size=align_up(wish.size, sector),
            block_size=align_up(options.block_size, MIB) or None,
            log_size=align_up(options.log_size, MIB),
            fixed=options.subformat == "fixed",
            block_state_zero=options.block_state_zero,
            logical_sector_size=options.logical_sector_size,
            physical_sector_size=options.physical_sector_size,
            parent=facts,
        )
        return NewVhdxImage(new, wish.file, parent)


def _as_parent(backing: Backing) -> VhdxNode:
    node = backing.node
    assert node is not None, "`opens_backing` says that it is open"
    if not isinstance(node, VhdxNode):
        raise OptionError(f"the parent of a VHDX image must be VHDX, and '{backing.name}' is {node.driver}")
    return node


CREATOR = VhdxCreator()
