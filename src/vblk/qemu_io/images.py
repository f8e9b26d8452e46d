"""Opening, reopening and closing the image of a session.

Owns: what the options of a call mean for an image, and the nodes that `-s` and
`-C` put on top of it.
"""

from dataclasses import replace

from vblk.errors import BlockError, GraphError, NeedsReplay, OptionError
from vblk.graph.edge import READING, WRITING
from vblk.graph.gate import gate_of
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules, Request
from vblk.opening import open_node
from vblk.options import NodeOptions, merge, parse_image_opts, with_filename
from vblk.qemu_io.language import Call
from vblk.qemu_io.session import Access, OpenImage, Session
from vblk.wording import GUESSED, Failure, sentence

CACHE_MODES = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")
DISCARD_MODES = {"ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
AIO_MODES = ("threads", "native", "io_uring")
DIRECT_MODES = ("none", "off", "directsync")
USER = "vblk io"

_REOPENED = {"raw": ("offset", "size")}
"""The own options of a driver that an open image can change."""


def read_cache(text: str) -> str:
    """Check the name of a cache mode.

    Raises:
        Failure: There is none of this name.
    """
    if text not in CACHE_MODES:
        raise Failure(f"Invalid cache option: {text}")
    return text


def read_discard(text: str) -> str:
    """Return the name of a discard mode, `unmap` or `ignore`.

    Raises:
        Failure: There is no such mode.
    """
    if text not in DISCARD_MODES:
        raise Failure(f"Invalid discard option: {text}")
    return DISCARD_MODES[text]


def with_discard(options: NodeOptions, mode: str | None) -> NodeOptions:
    """Return options with a discard mode, unless they name one themselves."""
    return options if mode is None or options.discard is not None else replace(options, discard=mode)


def check_aio(text: str | None, cache: str, options: NodeOptions) -> None:
    """Refuse engines that this version has not; None and `threads` are right.

    Raises:
        Failure: With the reason.
    """
    if text is None:
        return
    if text not in AIO_MODES:
        raise Failure(f"Invalid aio option: {text}")
    if text == "native" and cache not in DIRECT_MODES and not options.cache_direct:
        raise OptionError(
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        )
    if text != "threads":
        raise OptionError(f"aio={text} is not supported in this version of vblk: use aio=threads")


async def open_command(session: Session, call: Call) -> None:
    """Open another image, after `close`."""
    cache = "none" if call.has("n") else "writethrough"
    if (text := call.value("t")) is not None:
        cache = read_cache(text)
    discard = None if (mode := call.value("d")) is None else read_discard(mode)
    aio = call.value("i") or ("native" if call.has("k") else None)
    if aio is not None and aio not in AIO_MODES:
        raise Failure(f"Invalid aio option: {aio}")
    if len(call.operands) > 1 or (session.image_opts and (not call.operands or call.has("o"))):
        session.misused(call)
        return
    options = NodeOptions()
    for text in call.values("o"):
        options = merge(options, parse_image_opts(text, implied=None, warn=session.caution))
    name = call.operands[0] if call.operands else None
    if session.image_opts and name is not None:
        options, name = parse_image_opts(name, warn=session.caution), None
    access = Access(
        read_only=call.has("r"),
        snapshot=call.has("s"),
        copy_on_read=call.has("C"),
        force_share=call.has("U"),
        cache=cache,
    )
    await open_image(session, name, with_discard(options, discard), access, aio)


async def open_image(
    session: Session, name: str | None, options: NodeOptions, access: Access, aio: str | None = None
) -> None:
    """Open an image for a session that has none.

    Raises:
        Failure: It does not open; the sentence says why.
    """
    if session.image is not None:
        raise Failure("file open already, try 'help close'")
    called = "" if name is None else f" device {name}"
    try:
        if name is not None:
            options = with_filename(options, name)
        image = await _open(session, options, access, aio, strict=session.console.name == "qemu-io")
    except NeedsReplay as error:
        raise Failure(f"can't open{called}: {_needs_replay(error.filename or name)}") from error
    except BlockError as error:
        text = error.message if error.filename in (None, name) else sentence(error)
        raise Failure(f"can't open{called}: {text}") from error
    session.adopt(image)
    node = image.handle.node
    file = node.below
    if options.driver is None and node.driver == "raw" and not node.read_only:
        session.warn(GUESSED.format(node.filename if file is None else file.filename))


def _needs_replay(name: str | None) -> str:
    return (
        f"VHDX image file '{name}' opened read-only, but contains a log that needs to be replayed\n"
        f"To replay the log, run:\nqemu-img check -r all '{name}'"
    )


async def _open(
    session: Session, options: NodeOptions, access: Access, aio: str | None = None, *, strict: bool = False
) -> OpenImage:
    """Open an image; `strict`: as QEMU, replay no log in memory for who only reads."""
    if options.driver is None and "file" not in options.children and "filename" not in options.own:
        raise OptionError("Must specify either driver or file")
    check_aio(aio, access.cache, options)
    if access.force_share and not access.read_only:
        raise OptionError("force-share=on can only be used with read-only images")
    if options.read_only and not access.read_only:
        raise OptionError("Block node is read-only")
    # What lies under a temporary overlay is never written.
    below_read_only = access.read_only or access.snapshot
    if access.copy_on_read and access.read_only:
        raise GraphError("Can't use copy-on-read on read-only device")
    graph = Graph(gate=gate_of(session.console.name), objects=session.objects)
    try:
        rules = ChainRules(strict=strict and below_read_only)
        request = Request(below_read_only, access.cache, access.force_share, rules=rules)
        node = await open_node(graph, options, request)
        node = await _decorate(graph, node, access)
        handle = graph.hold(node, USER, READING if node.read_only else WRITING)
    except BaseException:
        await graph.close()
        raise
    return OpenImage(graph, handle, options, access)


async def _decorate(graph: Graph, node: Node, access: Access) -> Node:
    if access.snapshot:
        from vblk.filters import snapshot

        node = await snapshot.put_over(graph, node, read_only=access.read_only)
    if access.copy_on_read:
        from vblk.filters import copy_on_read

        node = await copy_on_read.put_over(graph, node)
    return node


async def close_command(session: Session, call: Call) -> None:
    """Let go of the image."""
    await session.close_image()


async def reopen_command(session: Session, call: Call) -> None:
    """Change how the image is open: its access, its cache mode, options of its driver."""
    changes, access = _read_changes(session, call)
    if call.operands:
        session.misused(call)
        return
    image = session.opened
    options = _changed(image.options, image.handle.node.driver, changes)
    if options == image.options and access.cache == image.access.cache:
        if access.read_only != image.access.read_only:
            await image.graph.reopen(image.handle.node, read_only=access.read_only)
            session.replace_access(access)
        return
    if image.access.snapshot:
        raise Failure("Cannot change options while a temporary overlay is in use")
    await session.close_image()
    try:
        session.adopt(await _open(session, options, access))
    except BlockError as error:
        session.adopt(await _open(session, image.options, image.access))
        raise Failure(error.message) from error


def _read_changes(session: Session, call: Call) -> tuple[NodeOptions, Access]:
    """Return the options to change, and the access with its changes."""
    old = session.opened.access
    if sum(letter in "rw" for letter, _ in call.options) > 1:
        raise Failure("Only one -r/-w option may be given")
    read_only, cache = old.read_only, old.cache
    if call.has("r") or call.has("w"):
        read_only = call.has("r")
    if (text := call.value("c")) is not None:
        cache = read_cache(text)
    changes = NodeOptions()
    for text in call.values("o"):
        changes = merge(changes, parse_image_opts(text, implied=None, warn=session.caution))
    if changes.read_only is not None:
        if call.has("r") or call.has("w"):
            raise Failure("Cannot set both -r/-w and 'read-only'")
        read_only = changes.read_only
    if call.has("c") and not (changes.cache_direct is None and changes.cache_no_flush is None):
        raise Failure("Cannot set both -c and the cache options")
    return changes, replace(old, read_only=read_only, cache=cache)


def _changed(options: NodeOptions, driver: str, changes: NodeOptions) -> NodeOptions:
    """Return the options of an open image with changes to them.

    Raises:
        Failure: One of them cannot be changed while the image is open.
    """
    if changes.driver not in (None, driver):
        raise Failure("Cannot change the option 'driver'")
    for name in changes.own:
        if name not in _REOPENED.get(driver, ()):
            raise Failure(f"Cannot change the option '{name}'")
    for name in changes.children:
        raise Failure(f"Cannot change the option '{name}'")
    if changes.node_name not in (None, options.node_name):
        raise Failure("Cannot change the option 'node-name'")
    if changes.force_share not in (None, options.force_share):
        raise Failure("Cannot change the option 'force-share'")
    if changes.detect_zeroes not in (None, options.detect_zeroes):
        raise Failure("Cannot change the option 'detect-zeroes'")
    changed = replace(options, own=options.own | changes.own, read_only=None)
    if changes.cache_direct is not None:
        changed.cache_direct = changes.cache_direct
    if changes.cache_no_flush is not None:
        changed.cache_no_flush = changes.cache_no_flush
    if changes.discard is not None:
        changed.discard = changes.discard
    return changed
