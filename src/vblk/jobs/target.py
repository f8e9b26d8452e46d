"""New image files: made beside their final name, and put in place when they are whole.

Owns: which targets are replaced and which are written in place, temporary names
and what becomes of them. It knows no format and no bytes.

Ordering rule: an existing file is locked as a writer locks it before anything is
made, and is replaced by one rename after everything was written. Until then it
is untouched; after a failure or a cancellation nothing new is left.

A file that has further names (hard links), or that stands in a folder where no
file can be made, and everything that is not a regular file, is written in place.
"""

import errno
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from vblk.aio.file_calls import set_extent_size_hint, set_no_copy_on_write
from vblk.errors import BlockError, StorageError
from vblk.graph.handle import Handle
from vblk.graph.node import Node, Preallocation
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import NodeOptions
from vblk.units import KIB, MIB, align_up

FIRST_BLOCK = 4 * KIB
SECTOR = 512
EXTENT_SIZE_HINT = MIB
_NEW_MODE = 0o644


class NewImage(NamedTuple):
    """What is to be made: a raw image of `size` bytes.

    `nocow` asks btrfs to write in place; `extent_size_hint`, in bytes, asks XFS
    for extents of that size, 0 for none.
    """

    size: int
    preallocation: Preallocation = Preallocation.OFF
    nocow: bool = False
    extent_size_hint: int = EXTENT_SIZE_HINT


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


@asynccontextmanager
async def new_raw_image(
    graph: Graph,
    name: str,
    image: NewImage,
    *,
    cache: str = "writeback",
) -> AsyncGenerator[Made]:
    """Yield a new raw image; keep it if the block ends well.

    A file's length is rounded up to whole sectors. Its first block is written,
    so that those who open it with O_DIRECT can find out what alignment it wants.

    Args:
        graph: Where the nodes live.
        name: The file's name.
        image: What is made.
        cache: The cache mode of the writes; with `unsafe` nothing is flushed.

    Raises:
        StorageError: The file cannot be made, or grows too large.
        PermissionConflict: Somebody uses the file that stands there.
        NoSpace: There is no room for it.
    """
    place = await graph.engine.run(lambda: _find_place(name))
    guard: Handle | None = None
    made = False
    try:
        if place.existing is not None:
            guard = await _open_below(graph, place, cache)
        if place.temporary is not None:
            made = True  # from here on a cancellation may find it there
            await graph.engine.run(lambda: _make_file(place, image))
            handle = await _open_file(graph, place.temporary, name, cache)
        elif guard is not None:
            handle, guard = guard, None
        else:
            await graph.engine.run(lambda: _make_file(place, image))
            handle = await _open_file(graph, place.path, name, cache)
        await _prepare(handle, place, image)
        yield Made(handle, not place.is_device)
        if cache != "unsafe":
            await handle.flush()
        if place.temporary is not None:
            await graph.engine.run(lambda: _publish(place, durable=cache != "unsafe"))
            made = False
        await graph.release(handle)
    finally:
        if guard is not None:
            await graph.release(guard)
        if made:
            assert place.temporary is not None
            with suppress(OSError):
                os.unlink(place.temporary)


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


def _make_file(place: _Place, image: NewImage) -> None:
    """Create the file, empty, with the mode and owner of the one it will replace."""
    path = place.temporary or place.path
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
        _pass_hints(descriptor, image)
    finally:
        os.close(descriptor)


def _pass_hints(descriptor: int, image: NewImage) -> None:
    """Tell the file system how the file will be used; one that does not know such hints is not in the way."""
    if image.nocow:
        with suppress(OSError):
            set_no_copy_on_write(descriptor)
    if image.extent_size_hint:
        with suppress(OSError):
            set_extent_size_hint(descriptor, image.extent_size_hint)


def _not_created(name: str, error: OSError) -> StorageError:
    number = error.errno or errno.EIO
    return StorageError(number, f"Could not create '{name}': {error.strerror}", filename=name)


async def _open_file(graph: Graph, path: str, name: str, cache: str) -> Handle:
    """Open a raw image over a file; errors call it by the name that its user knows."""
    return await _open_raw(graph, NodeOptions(driver="file", own={"filename": path}), name, cache)


async def _open_below(graph: Graph, place: _Place, cache: str) -> Handle:
    driver = "host_device" if place.is_device else "file"
    return await _open_raw(graph, NodeOptions(driver=driver, own={"filename": place.path}), place.name, cache)


async def _open_raw(graph: Graph, file: NodeOptions, name: str, cache: str) -> Handle:
    options = NodeOptions(driver="raw", children={"file": file})
    try:
        handle = await open_image(graph, options, read_only=False, cache=cache, user="the new image")
    except BlockError as error:
        rename_error(error, str(file.own["filename"]), name)
        raise
    node: Node | None = handle.node
    while node is not None:
        node.filename = name
        node = next((edge.node for edge in node.children.values()), None)
    return handle


def rename_error(error: BlockError, path: str, name: str) -> None:
    """Let an error speak of a file by the name that the user gave."""
    error.message = error.message.replace(path, name)
    if error.filename == path:
        error.filename = name


async def _prepare(handle: Handle, place: _Place, image: NewImage) -> None:
    size = image.size
    if place.is_device:
        if handle.size < size:
            raise StorageError(errno.ENOSPC, "the device is smaller than the image", filename=place.name)
        return
    if place.temporary is None and place.existing is not None:
        await handle.resize(0)
    await handle.resize(align_up(size, SECTOR), preallocation=image.preallocation)
    if size and image.preallocation is Preallocation.OFF:
        await handle.write(0, bytes(min(FIRST_BLOCK, align_up(size, SECTOR))))


def _publish(place: _Place, *, durable: bool) -> None:
    assert place.temporary is not None
    try:
        os.rename(place.temporary, place.path)
    except OSError as error:
        raise _not_created(place.name, error) from error
    if durable:
        folder = os.open(os.path.dirname(place.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
