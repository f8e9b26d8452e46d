"""qcow2 as a node: the shell around the pure map.

Owns: unpacking compressed clusters, the options of a qcow2 node, and which image
may be written. What the bytes mean is `vblk.formats.qcow2`; where the backing
file is, `vblk.drivers.qcow2_backing`; how the image is written,
`vblk.drivers.qcow2_writer`, which is loaded when it is first needed.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vblk.drivers.plan_node import PlanNode
from vblk.errors import BlockError, CorruptImage, OutOfRange, Reason, Unsupported
from vblk.extent import Extent, Kind, Missing
from vblk.formats.qcow2 import Qcow2Image, Snapshot, load_image, read_snapshots, unpack
from vblk.formats.qcow2.bitmaps import Directory, read_directory
from vblk.formats.qcow2.layout import BITMAPS, EXTENSION_BITMAPS
from vblk.graph.node import Node, Preallocation
from vblk.graph.site import Site
from vblk.options import NodeOptions, bind, check_children, says_not_which
from vblk.runtime.page_cache import PageCache
from vblk.units import MIB

if TYPE_CHECKING:
    from vblk.aio.engine import Engine
    from vblk.drivers.qcow2_writer import Qcow2Writer
    from vblk.formats.qcow2.check import CheckReport

_BEHIND_BITMAPS: Final = frozenset(("refcount-bits", "corrupt", "extended-l2"))

CACHE_BYTES = 16 * MIB
"""How much of the tables is kept in memory."""


@dataclass(slots=True)
class Options:
    """There are none of this driver's own in this version."""


class Qcow2Node(PlanNode["Qcow2Writer"]):
    """A qcow2 image."""

    driver = "qcow2"

    _writer: "Qcow2Writer | None"

    def __init__(self, name: str, filename: str, *, file: Node, image: Qcow2Image) -> None:
        """Show `image`, as it was loaded from `file`, for reading; `start_writing` does what it says."""
        page_size = image.geometry.page_size
        pages = PageCache[bytes](page_size=page_size, limit_pages=CACHE_BYTES // page_size)
        super().__init__(name, filename, file=file, pages=pages)
        self.directory = Directory()
        """The bitmaps that the file keeps."""
        self.adopt(image)

    def adopt(self, image: Qcow2Image) -> None:
        """Show the image as it is now."""
        self.image = image
        self.lookup_step = image.map.lookup_step
        self.allocation_unit = image.geometry.cluster_size

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self.image.header.size

    @property
    def takes_backing(self) -> bool:
        """Any image may stand on another one."""
        return True

    def lookup(self, offset: int, length: int) -> Sequence[Extent] | Missing:
        """Translate through L1 and L2 tables."""
        return self.image.map.lookup(offset, length, self.pages, self._file.size)

    def locate(self, offset: int, length: int) -> int | None:
        """Find a range inside one plain cluster whose tables are in memory."""
        return self.image.map.locate(offset, length, self.pages, self._file.size)

    async def _read_pages(self, start: int, length: int) -> bytes:
        return (await self.read_tables(start, length)).ljust(length, b"\0")

    async def read_encoded(self, offset: int, buffer: memoryview) -> None:
        """Unpack the clusters of a range; those that were written meanwhile are read."""
        geometry = self.image.geometry
        size = geometry.cluster_size
        end = offset + len(buffer)
        at = offset
        while at < end:
            stop = min(end, (at // size + 1) * size)
            piece = buffer[at - offset : stop - offset]
            extents = await self.extents(at, 1)
            if extents[0].kind is Kind.ENCODED:
                piece[:] = (await self._unpacked(at))[at % size : at % size + len(piece)]
            else:
                await super().read_into(at, piece)
            at = stop

    async def _unpacked(self, offset: int) -> bytes:
        """Return the compressed cluster at a guest offset."""
        geometry = self.image.geometry
        entry = self.image.map.l2_entry(offset, self.pages)
        assert entry is not None, "what was looked up just now is in memory"
        start, length = geometry.compressed(entry)
        data = await self.read_tables(start, length)
        try:
            return unpack(data, self.image.compression, geometry.cluster_size)
        except BlockError as error:
            error.filename, error.offset = self.filename, start
            raise

    def compress(self, engine: "Engine | None") -> None:
        """Compress the whole clusters of whatever is written from now on; with None not any more."""
        self.writer.compress(engine)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the virtual size; see `Node.resize`."""
        writer = self.writer
        if size % 512:
            raise OutOfRange("The new size must be a multiple of 512", filename=self.filename)
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"preallocation={preallocation.value} of qcow2 images is not in this version of vblk",
                filename=self.filename,
            )
        for bitmap in self.bitmaps.values():
            bitmap.require_consistent()
        if size < self.size and self.image.header.snapshots:
            raise Unsupported("Can't make an image smaller that has snapshots", filename=self.filename)
        await writer.resize(size)

    async def change_backing(self, name: str | None, form: str | None) -> None:
        """Let the image name another backing file, or none, and nothing else; see `qemu-img rebase -u`."""
        await self.writer.change_backing(name, form)

    async def name_backing(self, backing: Node | None, name: str) -> None:
        """Name it in the header; see `Mapper.name_backing`."""
        await self.change_backing(*((name, backing.driver) if backing is not None else (None, None)))

    async def make_empty(self) -> None:
        """Let go of all clusters; see `Mapper.make_empty`."""
        await self.writer.make_empty()

    async def start_writing(self) -> None:
        """Let the image be changed from now on; the file is open for writing.

        Raises:
            CorruptImage: The image must not be written as it is.
        """
        from vblk.drivers.qcow2_writer import Qcow2Writer

        require_writable_image(self.image)
        self._writer = Qcow2Writer(self)
        self.read_only = False

    async def begin_bitmaps(self) -> None:
        """Have the bitmaps that the image keeps; while it may be written nobody trusts those of the file.

        Raises:
            CorruptImage: They cannot be right, and would be lost by a change of the image.
        """
        header = self.image.header
        if header.extension(EXTENSION_BITMAPS) is None:
            return
        from vblk.drivers.qcow2_bitmaps import flag_in_use, load_bitmaps

        if not header.autoclear & BITMAPS:
            self.warnings.append("a program without bitmaps changed this image: its bitmaps are not used")
            return
        try:
            self.directory = await read_directory(self.read_tables, header)
            await load_bitmaps(self)
        except CorruptImage as error:
            if not self.read_only:
                raise
            self.warnings.append(f"the image's bitmaps are not used: {error}")
            return
        if not self.read_only:
            await flag_in_use(self)

    async def _end_bitmaps(self) -> None:
        """Store the bitmaps that the image is to keep, if it is open for writing."""
        if self._writer is None or not (self.directory.bitmaps or self.bitmaps):
            return
        from vblk.drivers.qcow2_bitmaps import store_bitmaps

        await store_bitmaps(self)

    def require_storable(self, name: str, granularity: int) -> None:
        """Raise GraphError when the image cannot keep one more bitmap."""
        from vblk.drivers.qcow2_bitmaps import require_storable

        require_storable(self, name, granularity)

    async def reopen(self, *, read_only: bool) -> None:
        """Change between reading only and writing: bitmaps are stored before, or flagged after that."""
        if read_only == self.read_only:
            return
        if read_only:
            await self._end_bitmaps()
        await super().reopen(read_only=read_only)
        if not read_only:
            await self.begin_bitmaps()

    async def close(self) -> None:
        """Store the bitmaps, end writing, and forget the pages.

        Raises:
            NodeFailed: Writing had failed.
        """
        try:
            await self._end_bitmaps()
        finally:
            await super().close()

    async def _load_again(self) -> None:
        image = await load_image(self.read_tables, self._file.size, filename=self.filename)
        self.pages.clear()
        self.adopt(image)

    async def check(self) -> "CheckReport":
        """Count all references of the whole image and compare."""
        from vblk.formats.qcow2.check import check_image

        await self._settle()
        return await check_image(self.image, self.read_tables, self._file.size)

    async def snapshots(self) -> list[Snapshot]:
        """Return the internal snapshots, which this version keeps and does not use."""
        found, _ = await read_snapshots(self.read_tables, self.image.header)
        return found

    def info(self) -> Mapping[str, Any]:
        """Return what `vblk info` shows under "Format specific information"."""
        facts = self.image.describe()
        bitmaps = [each.describe() for each in self.directory.bitmaps]
        if not bitmaps:
            return facts
        # QEMU shows them before the width of the counts.
        before = {name: value for name, value in facts.items() if name not in _BEHIND_BITMAPS}
        return before | {"bitmaps": bitmaps} | facts

    async def read_tables(self, offset: int, length: int) -> bytes:
        """Read from the file, as it stands there; short at its end."""
        return await self._file.read(offset, max(0, min(length, self._file.size - offset)))

    @property
    def backing_path(self) -> str | None:
        """Where the backing file is from here, as its name says; None without one."""
        name = self.image.header.backing_file
        if name is None or os.path.isabs(name) or has_protocol(name):
            return name
        return os.path.join(os.path.dirname(self.filename), name)

    @property
    def backed_end(self) -> int:
        """The end of what a backing file may have to say of this disk, in guest bytes."""
        if self.backing_left_closed:
            return self.size
        return 0 if self.backing is None else min(self.backing.size, self.size)


def has_protocol(name: str) -> bool:
    """Tell whether a name begins with a protocol, as `json:` or `nbd:`."""
    head, colon, _ = name.partition(":")
    return bool(colon) and "/" not in head


def require_writable_image(image: Qcow2Image) -> None:
    """Refuse an image that nobody may write to as it is.

    Raises:
        CorruptImage: With the reason.
    """
    if image.is_corrupt:
        raise CorruptImage(
            Reason.BAD_VALUE,
            "qcow2: Image is corrupt; cannot be opened read/write",
            filename=image.filename,
        )
    if image.is_dirty:
        raise CorruptImage(
            Reason.DIRTY_LOG,
            "the image was not closed properly, and its reference counts may be behind: repair them first",
            filename=image.filename,
        )


async def open_node(site: Site) -> Qcow2Node:
    """Open a qcow2 image as the site's options say, with its backing files when asked.

    Raises:
        ImageError: The image or one of its chain is damaged, refused, or not to be found.
    """
    check_children(site.options, "qcow2", "file", "backing")
    bind(site.options.own, Options, "qcow2")
    file = await site.child()

    async def read(offset: int, length: int) -> bytes:
        return await file.read(offset, max(0, min(length, file.size - offset)))

    image = await load_image(read, file.size, filename=site.filename)
    node = Qcow2Node(site.name, site.filename, file=file, image=image)
    if not site.read_only:
        await node.start_writing()
    await site.take(node, file)
    await _attach_backing(site, node)
    await node.begin_bitmaps()
    return node


async def _attach_backing(site: Site, node: Qcow2Node) -> None:
    if "backing" in site.options.children:
        wanted = site.options.children["backing"]
        if wanted is None:
            return
        if isinstance(wanted, NodeOptions) and says_not_which(wanted) and node.image.header.backing_file:
            from vblk.drivers.qcow2_backing import attach_backings

            await attach_backings(site, node, wanted)
            return
        # What the user said about the parent was about this image's, which the options name.
        site.request = site.request._replace(rules=site.request.rules._replace(parent=None))
        await site.attach_backing(node)
    elif node.image.header.backing_file is None:
        return
    elif site.request.backing:
        from vblk.drivers.qcow2_backing import attach_backings

        await attach_backings(site, node)
    else:
        node.backing_left_closed = True
