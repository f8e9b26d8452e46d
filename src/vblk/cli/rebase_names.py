"""`vblk rebase -u` of qcow2 images: another name in the header, and no look at any data.

Owns: QEMU's words for it. The name is written by the image's driver.
"""

from vblk.cli.console import Console
from vblk.cli.failure import Failure
from vblk.cli.images import ImageArguments, open_named
from vblk.drivers.qcow2 import Qcow2Node
from vblk.graph.registry import Graph
from vblk.opening import FORMATS, KNOWN_ELSEWHERE


async def rebase_names(
    graph: Graph,
    name: str,
    arguments: ImageArguments,
    console: Console,
    *,
    backing: str | None,
    backing_format: str | None,
    unsafe: bool,
    dry_run: bool,
) -> bool:
    """Give a qcow2 image another backing file; false: the image is of another format.

    Args:
        graph: The command's graph.
        name: The image.
        arguments: The common options.
        console: Where warnings go.
        backing: The new backing file's name as the image will have it; empty for none.
        backing_format: Its format.
        unsafe: Without, this is refused: data would have to be looked at.
        dry_run: Refused: nothing but a name would change.

    Raises:
        Failure: It cannot be done, in one sentence.
    """
    looked = await open_named(graph, name, arguments, console, backing=False)
    is_qcow2 = looked.node.driver == "qcow2"
    await graph.release(looked)
    if not is_qcow2:
        return False
    if not unsafe:
        raise Failure("qcow2 images are rebased with -u only: this version copies no data for it")
    if dry_run:
        raise Failure("--dry-run: nothing but a name in the image would change")
    if backing_format is not None and backing_format not in FORMATS and backing_format not in KNOWN_ELSEWHERE:
        raise Failure(f"Invalid format name: '{backing_format}'")
    if backing and backing_format is None:
        raise Failure(f"Could not change the backing file to '{backing}': backing format must be specified")
    handle = await open_named(graph, name, arguments, console, read_only=False, backing=False)
    node = handle.node
    assert isinstance(node, Qcow2Node)
    await node.change_backing(backing or None, backing_format if backing else None)
    await graph.release(handle)
    return True
