"""Making new VHDX images: the shell around the plan of a creation.

Owns: carrying out the stages, with a flush behind each. What is written, and
why in this order, is `vblk.formats.vhdx.create`.

Ordering rule: what stood in the file is gone, durably, before anything new is
written; so no crash can mix the two.
"""

import os

from vblk.drivers.vhdx import VhdxNode, read_up_to
from vblk.errors import OptionError
from vblk.formats.vhdx import load_image
from vblk.formats.vhdx.create import NewVhdx, ParentFacts, finished_table, plan_creation
from vblk.formats.vhdx.layout import METADATA_TABLE_SIZE
from vblk.formats.vhdx.locator import KEY_RELATIVE
from vblk.graph.node import Node, Preallocation


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


async def finish_image(leaf: Node) -> None:
    """Take the mark of an unfinished image away: it is durable then. Idempotent.

    Args:
        leaf: The file; the image in it is not open, and its log is empty.

    Raises:
        ImageError: It is not an image, or damaged, or its log is not empty.
    """

    async def read(offset: int, length: int) -> bytes:
        return await read_up_to(leaf, offset, length)

    await leaf.flush()
    image = await load_image(read, leaf.size, filename=leaf.filename, strict=True, unfinished=True)
    at = image.regions.metadata.file_offset
    table = finished_table(await leaf.read(at, METADATA_TABLE_SIZE))
    if table is not None:
        await leaf.write(at, table)
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
            (item, image.patch(at, await read_up_to(parent.file, at, item.length), item.length))
            for item in image.unknown_items
            if item.is_virtual_disk and item.length
            for at in (image.regions.metadata.file_offset + item.offset,)
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
