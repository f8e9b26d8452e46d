"""New image files: made beside their final name, and put in place when they are whole.

Owns: which targets are replaced and which are written in place, temporary names
and what becomes of them. It knows no format and no bytes.

Ordering rule: an existing file is locked as a writer locks it before anything is
made, and is replaced by one rename after everything was written. Until then it
is untouched; after a failure or a cancellation nothing new is left, unless a journal
says how to go on from it, or all was copied and only found to differ.

A file that has further names (hard links), or that stands in a folder where no
file can be made, and everything that is not a regular file, is written in place. So is
a file on another machine.
"""

import errno
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from vblk.aio.file_calls import set_extent_size_hint, set_no_copy_on_write, sync_folder
from vblk.drivers.bitmaps_beside import forget_bitmaps, move_bitmaps
from vblk.errors import BlockError, CopyDiffers, StorageError, Unsupported
from vblk.graph.creation import FileOptions, NewImage
from vblk.graph.edge import Permission
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import NodeOptions, NodeReference, to_filename
from vblk.protocols.remote_files import make_remote_file

if TYPE_CHECKING:
    from vblk.jobs.resumption import Journal

_NEW_MODE = 0o644

Target = str | NodeOptions
"""Where an image is made: a local path, or the options of a protocol that makes files elsewhere."""


class Made(NamedTuple):
    """A new image, open for writing; `is_zero` says that it reads as zeros, as a device does not."""

    handle: Handle
    is_zero: bool


class _Place(NamedTuple):
    """Where a new image will stand.

    `path` is the file's own name, after symbolic links. `existing` is what
    stands there, or None. `temporary` is where it is made; None: in place.
    """

    name: str
    path: str
    existing: os.stat_result | None
    temporary: str | None

    @property
    def is_device(self) -> bool:
        """Whether what stands there is no regular file."""
        return self.existing is not None and not stat.S_ISREG(self.existing.st_mode)


async def make_image(graph: Graph, name: Target, image: NewImage, *, cache: str = "writeback") -> None:
    """Make a new image.

    Args:
        graph: Where the nodes live.
        name: Where it is made.
        image: What is made.
        cache: The cache mode of the writes; with `unsafe` nothing is flushed.

    Raises:
        StorageError: The file cannot be made, or grows too large.
        PermissionConflict: Somebody uses the file that stands there.
        NoSpace: There is no room for it.
    """
    async with _new_file(graph, name, image.file, cache) as leaf:
        await image.create(leaf, durable=cache != "unsafe", unfinished=False)


@asynccontextmanager
async def new_image(
    graph: Graph,
    name: Target,
    image: NewImage,
    *,
    cache: str = "writeback",
    journal: "Journal | None" = None,
) -> AsyncGenerator[Made]:
    """Make a new image, yield it open for writing, and keep it if the block ends well.

    Arguments and errors are those of `make_image`. With a journal, which is claimed,
    the image is the one that it has begun, if it has, and is left if the block fails.

    Raises:
        Unsupported: There is a journal, and the image would be written in place.
    """
    async with (
        _new_file(graph, name, image.file, cache, journal) as leaf,
        filled_image(graph, leaf, image, cache=cache, journal=journal) as made,
    ):
        yield made
    if journal is not None:
        journal.end()


@asynccontextmanager
async def filled_image(
    graph: Graph, leaf: Node, image: NewImage, *, cache: str = "writeback", journal: "Journal | None" = None
) -> AsyncGenerator[Made]:
    """Make an image in `leaf`, a node of the graph, and yield it open for writing.

    It is marked as unfinished, if its format has that, until the block ended well.

    Raises:
        BlockError: It could not be made.
    """
    durable = cache != "unsafe"
    if journal is None or not journal.is_begun:
        await image.create(leaf, durable=durable, unfinished=True)
        if journal is not None:
            await leaf.flush()
            await graph.engine.run(journal.begin)
    backing = None if image.backing is None else NodeReference(image.backing.name)
    options = NodeOptions(
        driver=image.driver,
        own=dict(image.own),
        children={"file": NodeReference(leaf.name), "backing": backing},
    )
    handle = await _open(graph, options, leaf.filename, leaf.filename, cache)
    try:
        is_zero = image.reads_as_zeros and backing is None and leaf.driver != "host_device"
        yield Made(handle, is_zero)
        if durable:
            await handle.flush()
    except BaseException as error:
        with suppress(BlockError):
            await graph.release(handle)
            if isinstance(error, CopyDiffers):
                await image.finish(leaf, durable=durable)
        raise
    await graph.release(handle)
    await image.finish(leaf, durable=durable)


@asynccontextmanager
async def _new_file(
    graph: Graph, name: Target, options: FileOptions, cache: str, journal: "Journal | None" = None
) -> AsyncGenerator[Node]:
    """Yield the file in which a new image is made, and give it its name if the block ends well."""
    making = (
        _new_local_file(graph, name, options, cache, journal)
        if isinstance(name, str)
        else _new_remote_file(graph, name, cache)
    )
    async with making as leaf:
        yield leaf
        if cache != "unsafe":
            await leaf.flush()


@asynccontextmanager
async def _new_remote_file(graph: Graph, options: NodeOptions, cache: str) -> AsyncGenerator[Node]:
    node = await make_remote_file(graph, options, filename=to_filename(options), cache=cache)
    keeper = graph.hold(node, "the new image", Permission.NONE)
    try:
        yield node
    finally:
        await graph.release(keeper)


@asynccontextmanager
async def _new_local_file(
    graph: Graph, name: str, options: FileOptions, cache: str, journal: "Journal | None"
) -> AsyncGenerator[Node]:
    place = await graph.engine.run(lambda: _find_place(name))
    if journal is not None:
        if place.temporary is None:
            raise Unsupported("what is written in place is not made with a journal", filename=name)
        place = place._replace(temporary=journal.part)
    guard: Handle | None = None
    keeper: Handle | None = None
    made = False
    try:
        if place.temporary is None:
            await graph.engine.run(lambda: forget_bitmaps(place.path))
        if place.existing is not None:
            driver = "host_device" if place.is_device else "file"
            guard = await _open_leaf(graph, driver, place.path, name, cache)
        if place.temporary is None and guard is not None:
            keeper, guard = guard, None
        else:
            made = True  # from here on a cancellation may find it there
            if journal is None or not journal.is_begun:
                await graph.engine.run(lambda: _make_file(place, options))
            keeper = await _open_leaf(graph, "file", place.temporary or place.path, name, cache)
        keeper = await _only_kept(graph, keeper)
        yield keeper.node
        if journal is not None:
            await graph.engine.run(journal.finish)
        if place.temporary is not None:
            await graph.engine.run(lambda: _publish(place, durable=cache != "unsafe"))
        made = False
    except CopyDiffers as error:
        made = False
        if place.temporary is not None:
            error.add_note(f"what was copied is kept as '{place.temporary}'")
        raise
    finally:
        for handle in (keeper, guard):
            if handle is not None:
                await graph.release(handle)
        if made and place.temporary is not None and not (journal is not None and journal.is_begun):
            with suppress(OSError):
                os.unlink(place.temporary)


async def _only_kept(graph: Graph, handle: Handle) -> Handle:
    """Return a handle that keeps a node open and leaves all of its use to others."""
    keeper = graph.hold(handle.node, "the new image", Permission.NONE)
    await graph.release(handle)
    return keeper


def _find_place(name: str) -> _Place:
    path = os.path.realpath(name)
    try:
        existing = os.stat(path)
    except FileNotFoundError:
        existing = None
    except OSError as error:
        raise _not_created(name, error) from error
    if name.endswith("/") or (existing is not None and stat.S_ISDIR(existing.st_mode)):
        raise _not_created(name, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    whole = existing is None or (
        stat.S_ISREG(existing.st_mode)
        and existing.st_nlink == 1
        and os.access(os.path.dirname(path), os.W_OK | os.X_OK)
    )
    return _Place(name, path, existing, _temporary_name(path) if whole else None)


def _temporary_name(path: str) -> str:
    folder, base = os.path.split(path)
    return os.path.join(folder, f".{base[:180]}.{os.urandom(6).hex()}.vblk-part")


def _make_file(place: _Place, options: FileOptions) -> None:
    """Create the file, empty, with the mode and owner of the one it will replace."""
    path = place.temporary or place.path
    if place.temporary is not None:
        with suppress(FileNotFoundError):
            os.unlink(path)  # what a crash has left before its journal began
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, _NEW_MODE)
    except OSError as error:
        raise _not_created(place.name, error) from error
    try:
        if place.existing is not None:
            with suppress(OSError):
                os.fchown(descriptor, place.existing.st_uid, place.existing.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(place.existing.st_mode))
        _pass_hints(descriptor, options)
    finally:
        os.close(descriptor)


def _pass_hints(descriptor: int, options: FileOptions) -> None:
    """Tell the file system how the file will be used; one that does not know such hints is not in the way."""
    if options.nocow:
        with suppress(OSError):
            set_no_copy_on_write(descriptor)
    if options.extent_size_hint:
        with suppress(OSError):
            set_extent_size_hint(descriptor, options.extent_size_hint)


def _not_created(name: str, error: OSError) -> StorageError:
    number = error.errno or errno.EIO
    return StorageError(number, f"Could not create '{name}': {error.strerror}", filename=name)


async def _open_leaf(graph: Graph, driver: str, path: str, name: str, cache: str) -> Handle:
    return await _open(graph, NodeOptions(driver=driver, own={"filename": path}), path, name, cache)


async def _open(graph: Graph, options: NodeOptions, path: str, name: str, cache: str) -> Handle:
    """Open a node of the new image; it and errors call the file by the name that its user knows."""
    try:
        handle = await open_image(graph, options, read_only=False, cache=cache, user="the new image")
    except BlockError as error:
        rename_error(error, path, name)
        raise
    handle.node.filename = name
    return handle


def rename_error(error: BlockError, path: str, name: str) -> None:
    """Let an error speak of a file by the name that the user gave."""
    error.message = error.message.replace(path, name)
    if error.filename == path:
        error.filename = name


def _publish(place: _Place, *, durable: bool) -> None:
    assert place.temporary is not None
    try:
        os.rename(place.temporary, place.path)
    except OSError as error:
        raise _not_created(place.name, error) from error
    move_bitmaps(place.temporary, place.path)
    if durable:
        sync_folder(os.path.dirname(place.path))
