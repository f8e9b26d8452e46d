"""The chain behind a qcow2 image: from the names that images give to open nodes.

Owns: what a backing file's name means, and the walk down the chain. What a name
may lead to is the open gate's to say; how the end of a chain in another format
finds its own parents, that driver's.

Ordering rule: a chain is opened from the top down, one image at a time, so that
it may be long; a file that is its own ancestor is found before it is used.
"""

import os
from dataclasses import replace

from vblk.drivers.qcow2 import Qcow2Node, has_protocol
from vblk.drivers.vhdx_parent import identity, local_path
from vblk.errors import BlockError, CorruptImage, Cycle, Reason
from vblk.graph.edge import Role
from vblk.graph.edges import DEPTH_MAX
from vblk.graph.mapper import Mapper
from vblk.graph.node import Node
from vblk.graph.site import ChainRules, Site
from vblk.options import NodeOptions, parse_filename


async def attach_backings(site: Site, top: Qcow2Node, said: NodeOptions | None = None) -> None:
    """Open the whole chain behind `top` and attach each image to the one that names it.

    `said` is what the user says of the first, and in it of those behind, but for which they are.

    Raises:
        CorruptImage: A backing file is missing or does not open.
        OpenDenied: The gate forbids a file.
        Cycle: An image is its own ancestor, or the chain is deeper than DEPTH_MAX.
    """
    rules = site.request.rules
    seen = {identity(top)}
    child: Node = top
    for _ in range(DEPTH_MAX):
        if not isinstance(child, Qcow2Node) or child.image.header.backing_file is None:
            await _attach_others(site, child, rules)
            return
        backing = await _open_backing(site, child, rules, said)
        said = None
        try:
            known = identity(backing)
            if known is not None and known in seen:
                raise Cycle(f"'{backing.filename}' is its own ancestor", filename=child.filename)
            site.graph.attach(child, Role.BACKING, backing)
        except BaseException:
            await site.graph.discard_unused(backing)
            raise
        seen.add(known)
        child = backing
        while (behind := child.child(Role.BACKING)) is not None:
            child = behind
        rules = rules._replace(parent=None)
    raise Cycle(f"the chain has more than {DEPTH_MAX} images", filename=top.filename)


async def _attach_others(site: Site, node: Node, rules: ChainRules) -> None:
    """Let an image of another format find what is behind it."""
    if not isinstance(node, Mapper) or not node.backing_left_closed:
        return
    from vblk.drivers.vhdx import VhdxNode
    from vblk.drivers.vhdx_parent import attach_parents

    assert isinstance(node, VhdxNode), "no other format leaves a parent closed"
    await attach_parents(site, node, rules)


async def _open_backing(site: Site, child: Qcow2Node, rules: ChainRules, said: NodeOptions | None) -> Node:
    name = child.image.header.backing_file
    assert name is not None
    path = rules.parent if rules.parent is not None else _admitted(site, child, name, rules)
    form = child.image.header.backing_format or None
    if rules.parent is None and has_protocol(name):
        options = parse_filename(path, format=form)
    else:
        options = NodeOptions(driver=form, children={"file": NodeOptions(own={"filename": path})})
    if said is not None:
        options = replace(
            said, driver=options.driver, children={**said.children, **options.children}, own=options.own
        )
    request = site.request._replace(read_only=True, backing=False, rules=rules._replace(parent=None))
    try:
        return await site.open(options, request)
    except BlockError as error:
        error.message = f"Could not open backing file: {error.message}"
        error.args = (error.message,)
        error.filename = error.filename or path
        raise


def _admitted(site: Site, child: Qcow2Node, name: str, rules: ChainRules) -> str:
    """Return the local path, or the name of an export, that a name means, when the gate admits it."""
    image = local_path(child)
    if has_protocol(name):
        site.graph.gate.admit_export(name, named_by=image)
        return name
    path = os.path.join(os.path.dirname(image), name)
    try:
        return site.graph.gate.admit(path, named_by=image, roots=rules.parent_dirs)
    except FileNotFoundError as error:
        raise CorruptImage(
            Reason.PARENT_MISSING,
            f"Could not open backing file: Could not open '{path}': No such file or directory",
            filename=child.filename,
        ) from error
