"""From typed options to nodes: protocols below, the format above, parents behind.

Owns: which module serves which driver name, and probing. It moves no bytes and
parses no text. A driver's module has `open_node(site) -> Node`; it is imported
when the driver is first named, so that a command loads what it uses and no more.

Ordering rule: a child is opened before its parent node exists; whatever was
opened is closed again when a later step fails.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module

from vblk.errors import BlockError, OptionError, Unsupported
from vblk.formats.probe import PROBE_LENGTH, probe
from vblk.graph.edge import READING, SHARED_BY_READER, SHARED_BY_WRITER, WRITING, Permission
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules, Request, Site
from vblk.options import (
    NodeOptions,
    NodeReference,
    check_consistent,
    parse_filename,
    says_not_which,
    to_filename,
)

PROTOCOLS = {
    "file": "vblk.protocols.file",
    "host_device": "vblk.protocols.file",
    "host_cdrom": "vblk.protocols.file",
    "memory": "vblk.protocols.memory",
    "null-co": "vblk.protocols.null",
    "null-aio": "vblk.protocols.null",
    "nbd": "vblk.protocols.nbd",
    "ssh": "vblk.protocols.ssh",
    "gluster": "vblk.protocols.gluster",
    "http": "vblk.protocols.http",
    "https": "vblk.protocols.http",
}
FORMATS = {
    "luks": "vblk.drivers.luks",
    "qcow2": "vblk.drivers.qcow2",
    "raw": "vblk.drivers.raw",
    "vhdx": "vblk.drivers.vhdx",
}
FILTERS = {
    "blkdebug": "vblk.filters.fault",
    "blkverify": "vblk.filters.blkverify",
    "copy-before-write": "vblk.filters.copy_before_write",
    "copy-on-read": "vblk.filters.copy_on_read",
    "delay": "vblk.filters.delay",
    "quorum": "vblk.filters.quorum",
    "snapshot-access": "vblk.filters.snapshot_access",
    "throttle": "vblk.filters.throttle",
}
KNOWN_ELSEWHERE = frozenset(
    (
        "bochs cloop dmg parallels qcow qed vdi vmdk vpc vvfat "
        "blklogwrites blkreplay compress preallocate "
        "ftp ftps iscsi nfs nvme rbd"
    ).split()
)
"""Formats, protocols and filters that others have and this version has not."""

_HANDED_DOWN = ("force_share", "cache_direct", "cache_no_flush", "discard")


async def open_image(
    graph: Graph,
    image: NodeOptions | str,
    *,
    format: str | None = None,
    read_only: bool = True,
    user: str = "vblk",
    cache: str | None = None,
    force_share: bool = False,
    backing: bool = True,
    rules: ChainRules | None = None,
    shared: Permission = Permission.ALL,
) -> Handle:
    """Open an image and, with `backing`, its chain; return the user's handle.

    Raises:
        OptionError: The options are wrong or contradict each other.
        ImageError: The image, or one of its chain, is damaged or refused.
        StorageError: A file cannot be opened.
        PermissionConflict: Another process, or node, excludes this use.
    """
    if isinstance(image, str):
        options = parse_filename(image, format=format)
    elif format is not None and image.driver is None:
        options = replace(image, driver=format)
    elif format is not None and image.driver != format:
        raise OptionError(f"the format '{format}' contradicts the driver '{image.driver}'")
    else:
        options = image
    if options.driver is None and options.children.get("file") is None:
        raise OptionError("Must specify either driver or file")
    if force_share and not read_only:
        raise OptionError("force-share=on can only be used with read-only images")
    request = Request(read_only, cache or "writeback", force_share, backing, rules or ChainRules())
    node = await open_node(graph, hand_down(options), request)
    try:
        permissions = READING if read_only or node.read_only else WRITING
        return graph.hold(node, user, permissions, shared)
    except BaseException:
        await graph.discard_unused(node)
        raise


async def open_storage(
    graph: Graph, options: NodeOptions, *, cache: str | None = None, force_share: bool = False
) -> Handle:
    """Open what stores an image, for writing, and nothing above it: for who repairs the image.

    Raises: as `open_image`.
    """
    below = hand_down(options).children.get("file")
    if not isinstance(below, NodeOptions):
        raise OptionError('A block device must be specified for "file"')
    if force_share:
        raise OptionError("force-share=on can only be used with read-only images")
    node = await open_node(graph, below, Request(read_only=False, cache=cache or "writeback"))
    try:
        return graph.hold(node, "vblk", WRITING)
    except BaseException:
        await graph.discard_unused(node)
        raise


def hand_down(options: NodeOptions) -> NodeOptions:
    """Let what is said of an image count for the nodes that store it, unless they say otherwise."""
    children = dict(options.children)
    for name, child in children.items():
        if name == "backing" or not isinstance(child, NodeOptions):
            continue
        handed = {
            attribute: getattr(options, attribute)
            for attribute in _HANDED_DOWN
            if getattr(child, attribute) is None
        }
        children[name] = hand_down(replace(child, **handed))
    return replace(options, children=children)


async def open_node(graph: Graph, options: NodeOptions, request: Request) -> Node:
    """Open a node and everything below it; it has no user yet."""
    check_consistent(options)
    if options.driver is None and "filename" in options.own:
        return await _open_driver(graph, replace(options, driver=_local_driver(options)), request)
    if options.driver is None:
        return await _open_probed(graph, options, request)
    return await _open_driver(graph, options, request)


async def _open_probed(graph: Graph, options: NodeOptions, request: Request) -> Node:
    """Open the protocol, look at its first bytes, and put the format on top."""
    below = options.children.get("file")
    if below is None:
        raise OptionError("Must specify either driver or file")
    if isinstance(below, NodeReference):
        file = graph.find(below.name)
    else:
        file = await open_node(graph, below, _for_child(request, options))
    try:
        found = probe(await file.read(0, min(PROBE_LENGTH, file.size)), file.size)
        children = {**options.children, "file": NodeReference(file.name)}
        formatted = replace(options, driver=found.format, children=children)
        return await _open_driver(
            graph,
            formatted,
            request,
            probed=True,
            filename=to_filename(replace(options, driver=found.format)),
        )
    except BaseException:
        if not isinstance(below, NodeReference):
            with suppress(BlockError):
                await graph.discard_unused(file)
        raise


def _for_child(request: Request, options: NodeOptions) -> Request:
    return request if options.read_only is None else request._replace(read_only=options.read_only)


async def _open_driver(
    graph: Graph, options: NodeOptions, request: Request, *, probed: bool = False, filename: str | None = None
) -> Node:
    driver = options.driver
    assert driver is not None
    module_name = PROTOCOLS.get(driver) or FORMATS.get(driver) or FILTERS.get(driver)
    filename = filename or to_filename(_spelled_out(graph, options))
    if module_name is None:
        if driver in KNOWN_ELSEWHERE:
            raise Unsupported(
                f"the driver '{driver}' is not supported in this version of vblk",
                filename=filename,
            )
        raise OptionError(f"Unknown driver '{driver}'")
    read_only = _for_child(request, options).read_only

    async def open_child(child: NodeOptions, child_request: Request) -> Node:
        return await open_node(graph, child, child_request)

    site = Site(
        graph,
        options,
        request,
        open_child,
        options.node_name or graph.unique_name(),
        filename,
        read_only,
        READING if read_only else WRITING,
        SHARED_BY_READER if read_only else SHARED_BY_WRITER,
        probed,
    )
    opener: Callable[[Site], Awaitable[Node]] = import_module(module_name).open_node
    try:
        node = await opener(site)
    except BaseException:
        await site.abandon()
        raise
    node.options = options
    if options.detect_zeroes not in (None, "off"):
        from vblk.graph.zero_detection import set_detection

        set_detection(node, options.detect_zeroes or "off")
    return node


def _spelled_out(graph: Graph, options: NodeOptions) -> NodeOptions:
    """Return options with those of the nodes that they refer to, for a name that says everything."""
    found = {node.name: node.options for node in graph.nodes()}
    children: dict[str, NodeOptions | NodeReference | None] = {}
    for name, child in options.children.items():
        if name == "backing" and isinstance(child, NodeOptions) and says_not_which(child):
            continue  # it is what the image itself names
        described = found.get(child.name) if isinstance(child, NodeReference) else None
        children[name] = child if described is None else _spelled_out(graph, described)
    return replace(options, children=children)


def _local_driver(options: NodeOptions) -> str:
    """Choose between a file and a device by what stands there."""
    from vblk.protocols.file import driver_for

    return driver_for(str(options.own["filename"]))
