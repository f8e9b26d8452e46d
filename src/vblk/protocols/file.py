"""Finding, opening and creating local files and host devices.

Owns: which kind of file fits which driver, the words of every refusal, what
direct I/O demands here, and the order in which an image is opened: look, open,
lock, measure. What fails half-way leaves nothing open and nothing locked.
"""

import errno
import mmap
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple

from vblk.aio.engine import Engine, storage_error
from vblk.aio.fd_sets import PREFIX, FdSets
from vblk.aio.file_calls import set_extent_size_hint, set_no_copy_on_write
from vblk.errors import BlockError, NoSpace, OptionError, StorageError
from vblk.graph.edge import READING, SHARED_BY_READER, WRITING, Permission
from vblk.graph.node import Preallocation
from vblk.graph.site import Site
from vblk.options import Size, bind, check_children
from vblk.protocols.cache_mode import WRITEBACK, CacheMode, cache_mode_of
from vblk.protocols.file_node import FileNode, open_flags
from vblk.protocols.file_space import DeviceSpace, FileSpace, Space
from vblk.protocols.host_device import HostCdromNode, HostDeviceNode
from vblk.protocols.image_lock import ImageLock
from vblk.units import KIB, MIB

_ALIGNMENT_UNKNOWN: Final = 4 * KIB
_ALIGNMENT_MAX: Final = 64 * KIB
_EXTENT_SIZE_HINT: Final = Size(MIB)
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EROFS, errno.EPERM})

CREATED_SHARES = Permission.ALL & ~Permission.RESIZE


@dataclass(slots=True)
class Options:
    """The options of `file`, `host_device` and `host_cdrom`.

    `locking`: whether to lock the image against other programs; `auto` goes
    without where the file system has no locks. `aio`: the engine; this version
    has `threads`.
    """

    filename: str
    locking: Literal["auto", "on", "off"] = "auto"
    aio: Literal["threads"] = "threads"


@dataclass(slots=True)
class CreateOptions:
    """The options of a new file.

    `size` in bytes; `extent_size_hint` in bytes, 0 for none (XFS only);
    `nocow`: overwrite blocks in place (btrfs only).
    """

    size: Size
    preallocation: Literal["off", "falloc", "full"] = "off"
    nocow: bool = False
    extent_size_hint: Size = _EXTENT_SIZE_HINT


def driver_for(filename: str) -> Literal["file", "host_device"]:
    """Return the driver that fits what `filename` names now; `file` if nothing. Blocks briefly."""
    try:
        mode = os.stat(filename).st_mode
    except (OSError, ValueError):
        return "file"
    return "host_device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "file"


async def open_file(
    engine: Engine,
    options: Options,
    *,
    name: str,
    read_only: bool,
    auto_read_only: bool = False,
    permissions: Permission | None = None,
    shared: Permission = SHARED_BY_READER,
    force_share: bool = False,
    cache: CacheMode = WRITEBACK,
    discard: bool = True,
    fd_sets: FdSets | None = None,
) -> FileNode:
    """Open a regular file.

    Args:
        engine: Carries out every blocking call, of the opening and later.
        options: Which file, and how to lock it.
        name: The node's name.
        read_only: Do not open for writing.
        auto_read_only: Open for reading only where writing is forbidden.
        permissions: What the user does with the image, for the lock; by default
            reading, and writing unless `read_only`.
        shared: What it lets others do meanwhile.
        force_share: Take no offence at other users, whatever they do; for
            reading only.
        cache: How writes reach the medium.
        discard: Give space back when asked to; without, it is kept.
        fd_sets: What names below `/dev/fdset/` mean; without, they are names of files.

    Raises:
        StorageError: It cannot be opened, or is no regular file.
        ImageLocked: Another program excludes this use of it.
        OptionError: `force_share` with writing.
    """
    return await _open(
        _FILE,
        engine,
        options,
        name,
        _Access(read_only, auto_read_only, permissions, shared, force_share, fd_sets),
        cache,
        discard,
    )


async def open_host_device(
    engine: Engine,
    options: Options,
    *,
    name: str,
    read_only: bool,
    auto_read_only: bool = False,
    permissions: Permission | None = None,
    shared: Permission = SHARED_BY_READER,
    force_share: bool = False,
    cache: CacheMode = WRITEBACK,
    discard: bool = True,
    fd_sets: FdSets | None = None,
    cdrom: bool = False,
) -> HostDeviceNode:
    """Open a block or character device of the host; see `open_file`.

    With `cdrom` it is called a CD-ROM drive.
    """
    node = await _open(
        _CDROM if cdrom else _DEVICE,
        engine,
        options,
        name,
        _Access(read_only, auto_read_only, permissions, shared, force_share, fd_sets),
        cache,
        discard,
    )
    assert isinstance(node, HostDeviceNode)
    return node


class _DriverKind(NamedTuple):
    """What sets the two drivers apart when opening."""

    node: type[FileNode]
    space: type[Space]
    refusal: str

    def fits(self, mode: int) -> bool:
        if self.space is FileSpace:
            return stat.S_ISREG(mode)
        return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


_FILE = _DriverKind(FileNode, FileSpace, "'file' driver requires '{}' to be a regular file")
_DEVICE_REFUSAL = "'{driver}' driver requires '{{}}' to be either a character or block device"
_DEVICE = _DriverKind(HostDeviceNode, DeviceSpace, _DEVICE_REFUSAL.format(driver="host_device"))
_CDROM = _DriverKind(HostCdromNode, DeviceSpace, _DEVICE_REFUSAL.format(driver="host_cdrom"))


@dataclass(slots=True)
class _Access:
    """How an image is to be opened; `read_only` may become true on the way."""

    read_only: bool
    auto_read_only: bool
    permissions: Permission | None
    shared: Permission
    force_share: bool
    fd_sets: FdSets | None = None

    def wanted(self) -> Permission:
        wanted = self.permissions if self.permissions is not None else WRITING
        return wanted & READING if self.read_only else wanted


class _Opening:
    """What an opening has got so far, to be released as a whole if it fails."""

    def __init__(self) -> None:
        self.fd = -1
        self.lock: ImageLock | None = None
        self.space: Space | None = None
        self.size = 0
        self.alignment = 1

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()
        if self.fd >= 0:
            os.close(self.fd)


async def _open(
    kind: _DriverKind,
    engine: Engine,
    options: Options,
    name: str,
    access: _Access,
    cache: CacheMode,
    discard: bool,
) -> FileNode:
    filename = options.filename
    if access.force_share and not access.read_only:
        raise OptionError("force-share=on can only be used with read-only images", filename=filename)
    opening = _Opening()
    try:
        await engine.run(lambda: _open_blocking(opening, kind, options, access, cache))
    except OSError as error:
        opening.release()
        raise _open_error(error, filename, cache) from error
    except BaseException:
        opening.release()
        raise
    assert opening.space is not None
    return kind.node(
        name,
        filename,
        read_only=access.read_only,
        engine=engine,
        fd=opening.fd,
        space=opening.space,
        lock=opening.lock,
        permissions=access.wanted(),
        shared=Permission.ALL if access.force_share else access.shared,
        cache=cache,
        size=opening.size,
        alignment=opening.alignment,
        discard=discard,
    )


def _open_blocking(
    opening: _Opening, kind: _DriverKind, options: Options, access: _Access, cache: CacheMode
) -> None:
    filename = options.filename
    try:
        if not _is_passed(filename, access):
            _check_kind(os.stat(filename).st_mode, kind, filename, access.read_only)
        opening.fd = _open_descriptor(filename, access, cache)
        _check_kind(os.fstat(opening.fd).st_mode, kind, filename, access.read_only)
    except OSError as error:
        raise _open_error(error, filename, cache) from error
    except ValueError as error:  # a NUL in the name
        raise StorageError(
            errno.EINVAL, f"Could not open '{filename}': {error}", filename=filename
        ) from error
    try:
        if options.locking != "off":
            shared = Permission.ALL if access.force_share else access.shared
            opening.lock = ImageLock(opening.fd, filename, required=options.locking == "on")
            opening.lock.change(Permission.NONE if access.force_share else access.wanted(), shared)
        opening.space = kind.space(opening.fd)
        opening.size = opening.space.size()
        if cache.direct:
            opening.alignment = _direct_alignment(opening.fd, opening.space, filename)
    except OSError as error:
        raise storage_error(error, filename=filename, operation="open") from error


def _check_kind(mode: int, kind: _DriverKind, filename: str, read_only: bool) -> None:
    if stat.S_ISDIR(mode) and not read_only:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not kind.fits(mode):
        # Before opening: a FIFO would wait for a writer, a tape would rewind.
        raise StorageError(errno.EINVAL, kind.refusal.format(filename), filename=filename)


def _is_passed(filename: str, access: _Access) -> bool:
    return access.fd_sets is not None and filename.startswith(PREFIX)


def _open_descriptor(filename: str, access: _Access, cache: CacheMode) -> int:
    flags = open_flags(access.read_only, cache)
    if access.fd_sets is not None and filename.startswith(PREFIX):
        return access.fd_sets.duplicate(filename, flags)
    try:
        return os.open(filename, flags)
    except OSError as error:
        if access.read_only or not access.auto_read_only or error.errno not in _NOT_WRITABLE:
            raise
    access.read_only = True
    return os.open(filename, open_flags(True, cache))


def _open_error(error: OSError, filename: str, cache: CacheMode) -> BlockError:
    number = error.errno or errno.EIO
    reason = os.strerror(number)
    if number == errno.EINVAL and cache.direct:
        reason = "the file system does not support O_DIRECT"
    return StorageError(number, f"Could not open '{filename}': {reason}", filename=filename, operation="open")


def _direct_alignment(fd: int, space: Space, filename: str) -> int:
    """Find what direct reads here must be aligned to, in bytes, by trying."""
    if space.sector_size > 1:
        return space.sector_size
    if space.size() == 0:
        return _ALIGNMENT_UNKNOWN  # an empty file accepts every read
    alignment = 512
    with mmap.mmap(-1, _ALIGNMENT_MAX) as memory:
        while alignment <= _ALIGNMENT_MAX:
            with memoryview(memory) as view, view[:alignment] as buffer:
                try:
                    os.preadv(fd, [buffer], 0)
                    return alignment
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            alignment *= 2
    raise StorageError(errno.EINVAL, "Could not find working O_DIRECT alignment", filename=filename)


async def open_node(site: Site) -> FileNode:
    """Open a file or a host device as the site's options say.

    Raises as `open_file`, and OptionError for what the options cannot mean.
    """
    driver = site.options.driver or "file"
    check_children(site.options, driver)
    opener: Callable[..., Awaitable[FileNode]] = open_file
    if driver != "file":
        opener = partial(open_host_device, cdrom=driver == "host_cdrom")
    node = await opener(
        site.graph.engine,
        bind(site.options.own, Options, driver),
        name=site.name,
        read_only=site.read_only,
        auto_read_only=bool(site.options.auto_read_only),
        permissions=site.permissions,
        shared=site.shared,
        force_share=site.request.force_share
        if site.options.force_share is None
        else site.options.force_share,
        cache=cache_mode_of(site.request.cache, site.options),
        discard=site.options.discard != "ignore",
        fd_sets=site.graph.fd_sets,
    )
    try:
        site.graph.add(node)
    except BaseException:
        await node.close()
        raise
    return node


async def create_file(engine: Engine, filename: str, options: CreateOptions) -> None:
    """Create a file, or empty one that is there, and give it its size.

    On a host device only its size is checked: a device cannot be made.

    Raises:
        StorageError: The system forbids it.
        ImageLocked: Another program uses the file.
        NoSpace: The space to preallocate is not there, or the device is too small.
    """
    if driver_for(filename) == "host_device":
        await _check_device(engine, filename, options)
        return
    opening = _Opening()
    try:
        await engine.run(lambda: _create_blocking(opening, filename, options))
    except BaseException:
        opening.release()
        raise
    assert opening.space is not None
    node = FileNode(
        "", filename, read_only=False, engine=engine, fd=opening.fd, space=opening.space, lock=opening.lock,
        permissions=Permission.WRITE | Permission.RESIZE, shared=CREATED_SHARES, cache=WRITEBACK, size=0,
    )  # fmt: skip
    try:
        await node.resize(options.size, preallocation=Preallocation(options.preallocation))
    finally:
        await node.close()


def _create_blocking(opening: _Opening, filename: str, options: CreateOptions) -> None:
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        opening.fd = os.open(filename, flags, 0o644)
    except (OSError, ValueError) as error:
        number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
        text = f"Could not create '{filename}': {os.strerror(number)}"
        raise StorageError(number, text, filename=filename, operation="create") from error
    if not stat.S_ISREG(os.fstat(opening.fd).st_mode):
        raise StorageError(errno.EINVAL, _FILE.refusal.format(filename), filename=filename)
    try:
        opening.lock = ImageLock(opening.fd, filename, required=False)
        opening.lock.change(Permission.WRITE | Permission.RESIZE, CREATED_SHARES)
        os.ftruncate(opening.fd, 0)
        _hint(opening.fd, options)
        opening.space = FileSpace(opening.fd)
    except OSError as error:
        raise storage_error(error, filename=filename, operation="create") from error


def _hint(fd: int, options: CreateOptions) -> None:
    """Pass the hints on; file systems that do not know them are not in the way."""
    with suppress(OSError):
        if options.nocow:
            set_no_copy_on_write(fd)
    with suppress(OSError):
        if options.extent_size_hint:
            set_extent_size_hint(fd, options.extent_size_hint)


async def _check_device(engine: Engine, filename: str, options: CreateOptions) -> None:
    node = await open_host_device(engine, Options(filename), name="", read_only=False)
    try:
        if node.size < options.size:
            raise NoSpace("The device is smaller than the image", filename=filename)
    finally:
        await node.close()
