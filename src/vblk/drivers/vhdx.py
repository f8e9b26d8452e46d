"""VHDX as a node: the shell around the pure reader.

Owns: the options of a VHDX node, the short ways to blocks that are there, and which
image may be written. What the bytes mean is `vblk.formats.vhdx`; who the parent is,
`vblk.drivers.vhdx_parent`; how it is written, `vblk.drivers.vhdx_writer`, which is
loaded when it is first needed.

Ordering rule: every metadata range that is loaded passes through the overlay of
the replayed log before anyone looks at it. A log is replayed in place only after
everything was found sound through that overlay.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vblk.drivers.bitmaps_beside import BitmapsBeside
from vblk.drivers.plan_node import PlanNode
from vblk.errors import OptionError
from vblk.extent import Extent, Missing
from vblk.formats.vhdx import Candidate, VhdxImage, load_image
from vblk.graph.mapper import INLINE_MAX
from vblk.graph.node import Buffer, Node, Preallocation
from vblk.graph.site import ChainRules, Site
from vblk.options import bind, check_children
from vblk.runtime.page_cache import PageCache
from vblk.units import KIB

if TYPE_CHECKING:
    from vblk.drivers.vhdx_writer import VhdxWriter
    from vblk.formats.vhdx import CheckReport
    from vblk.formats.vhdx.metadata import MetadataItem

PAGE = 4 * KIB
CACHE_PAGES = 4096
"""16 MiB of BAT and bitmap pages: the BAT of 2 TiB at 1 MiB blocks."""
BLOCK_STARTS_MAX = 1 << 16
"""How many blocks' starts are remembered: some megabytes at most."""


@dataclass(slots=True)
class Search:
    """What became of the search for an image's parent: for `vblk chain` and for errors.

    `tried` has the paths that were not the parent, each with the reason.
    """

    found: Candidate | None = None
    tried: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@dataclass(slots=True)
class Options:
    """How one VHDX image is opened, and where its parents are looked for.

    `parent` is the parent's path, in place of what the image says. `parent_dir`
    are folders to search and trust. `path_map` has entries `FROM=TO` that turn
    Windows paths into local ones. `ignore_linkage` accepts a parent whose
    content may have changed. `strict` refuses an image whose log needs replay.
    `unfinished` opens an image that is still being made, for its maker.
    """

    strict: bool = False
    parent: str | None = None
    parent_dir: list[str] = field(default_factory=list[str])
    path_map: list[str] = field(default_factory=list[str])
    ignore_linkage: bool = False
    unfinished: bool = False


class VhdxNode(PlanNode["VhdxWriter"], BitmapsBeside):
    """A VHDX image."""

    driver = "vhdx"

    _writer: "VhdxWriter | None"

    def __init__(self, name: str, filename: str, *, file: Node, image: VhdxImage) -> None:
        """Show `image`, as it was loaded from `file`, for reading; `start_writing` does what it says."""
        pages = PageCache[bytes](page_size=PAGE, limit_pages=CACHE_PAGES)
        super().__init__(name, filename, file=file, pages=pages)
        self.search: Search | None = None
        self.adopt(image)

    def adopt(self, image: VhdxImage) -> None:
        """Show the image as it is now."""
        self.image = image
        self._size = image.virtual_size
        self.allocation_unit = 0 if image.type == "fixed" else image.block_size
        self._locate = image.locate
        self._block_starts: dict[int, int] = {}
        self._block_shift = image.block_size.bit_length() - 1
        self._within_block = image.block_size - 1
        self.lookup_step = image.lookup_step
        self.damage_unit = image.block_size

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self._size

    @property
    def takes_backing(self) -> bool:
        """Only differencing images stand on another one."""
        return self.image.has_parent

    async def stand_on(self, backing: Node) -> None:
        """Name the parent as it is now: it may have been written since this image was made for it."""
        from vblk.drivers.vhdx_links import link_to

        await link_to(self, backing)

    async def name_backing(self, backing: Node | None, name: str) -> None:
        """Name it in the locator, or have none; see `Mapper.name_backing`."""
        from vblk.drivers.vhdx_links import name_parent, part

        await (part(self) if backing is None else name_parent(self, backing, name))

    def keep_identity(self) -> None:
        """Keep the data write GUID, unless the image was changed already; see `Mapper.keep_identity`."""
        if not self.writer.changed:
            self.writer.become(self.image.data_write_guid)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read at once: the short way for a range inside a block that was read before."""
        within = offset & self._within_block
        start = self._block_starts.get(offset >> self._block_shift)
        if start is not None and length <= INLINE_MAX and within + length <= self._within_block + 1:
            return self._file.try_read(start + within, length)
        return super().try_read(offset, length)

    def lookup(self, offset: int, length: int) -> Sequence[Extent] | Missing:
        """Translate through BAT and sector bitmaps."""
        return self.image.lookup(offset, length, self.pages)

    def locate(self, offset: int, length: int) -> int | None:
        """Find a range inside one present block whose BAT page is loaded.

        Where the block starts is remembered as long as nobody writes: an image
        that is only read never moves one.
        """
        file_offset = self._locate(offset, length, self.pages)
        if file_offset is not None and self._writer is None:
            if len(self._block_starts) >= BLOCK_STARTS_MAX:
                self._block_starts.clear()
            self._block_starts[offset >> self._block_shift] = file_offset - (offset & self._within_block)
        return file_offset

    async def _read_pages(self, start: int, length: int) -> bytes:
        """Read metadata pages, as they are after the log's replay."""
        return self.image.patch(start, await self.read_metadata(start, length))

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once to a block that is there; see `Node.try_write`."""
        return (self._writer or self.writer).try_write(offset, data)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the virtual size; see `Node.resize`."""
        await self.writer.resize(size, preallocation)

    async def start_writing(self) -> None:
        """Let the image be changed from now on; the file is open for writing and `image` is clean."""
        from vblk.drivers.vhdx_writer import VhdxWriter

        self._block_starts.clear()
        self._writer = VhdxWriter(self)
        self.read_only = False

    async def _load_again(self) -> None:
        image = await load_writable(self._file, self.filename)
        self.pages.clear()
        self.adopt(image)

    async def check(self) -> "CheckReport":
        """Check the whole image, as it reads after the log's replay."""
        from vblk.formats.vhdx import check_image

        await self._settle()
        return await check_image(self.image, self.read_metadata)

    async def scan(self) -> None:
        """Look through the block table, bounded, so that `image.findings` tells of it."""
        from vblk.formats.vhdx import scan_image

        await self._settle()
        await scan_image(self.image, self.read_metadata)

    def info(self) -> Mapping[str, Any]:
        """Return what `vblk info` shows under "Format specific information"."""
        return self.image.describe() | self._kept_bitmaps()

    def identity(self, status: os.stat_result) -> str:
        """Return what every writer changes before it changes the disk."""
        return f"data write GUID {self.image.data_write_guid}"

    async def reopen(self, *, read_only: bool) -> None:
        """Change between reading only and writing: bitmaps are stored after that, or flagged before."""
        if read_only == self.read_only:
            return
        await super().reopen(read_only=read_only)
        await (self._end_bitmaps() if read_only else self._resume_bitmaps())

    async def close(self) -> None:
        """End writing, store the bitmaps, and forget the pages.

        Raises:
            NodeFailed: Writing had failed; the bitmaps stay flagged.
        """
        has_written = self._writer is not None
        await super().close()
        if has_written:
            await self._end_bitmaps()

    async def make_empty(self) -> None:
        """Let everything be the parent's again; see `Mapper.make_empty`."""
        from vblk.drivers.vhdx_links import make_empty

        await make_empty(self)

    async def read_item(self, item: "MetadataItem") -> bytes:
        """Read the content of a metadata item."""
        at = self.image.regions.metadata.file_offset + item.offset
        return self.image.patch(at, await self.read_metadata(at, item.length), item.length)

    async def read_metadata(self, offset: int, length: int) -> bytes:
        """Read metadata from the file, as it stands there; short at its end."""
        return await read_up_to(self._file, offset, length)


async def read_up_to(file: Node, offset: int, length: int) -> bytes:
    """Read from a node, short at its end."""
    return await file.read(offset, max(0, min(length, file.size - offset)))


async def load_writable(
    file: Node, filename: str, *, strict: bool = False, unfinished: bool = False
) -> VhdxImage:
    """Load an image that is to be written, its log replayed in place.

    With `unfinished` it may still be marked as being made.

    Raises:
        ImageError: It is damaged, or must not be written as it is: nothing was changed.
        NeedsReplay: `strict` is set and the log is not empty.
        StorageError: The replay failed; the next can do it.
    """
    image = await load_sound(file, filename, strict=strict, unfinished=unfinished)
    return await replayed(file, image, unfinished=unfinished)


async def load_sound(
    file: Node, filename: str, *, strict: bool = False, unfinished: bool = False
) -> VhdxImage:
    """Load an image that may be written when its log is replayed; see `load_writable`."""

    async def read(offset: int, length: int) -> bytes:
        return await read_up_to(file, offset, length)

    from vblk.formats.vhdx.check import scan_image, writing_refused

    image = await load_image(read, file.size, filename=filename, strict=strict, unfinished=unfinished)
    await scan_image(image, read)
    if image.read_only_reasons:
        raise writing_refused(image.read_only_reasons[0], filename)
    return image


async def replayed(file: Node, image: VhdxImage, *, unfinished: bool = False) -> VhdxImage:
    """Return a sound image as it is when its log, if it has one, was replayed in place."""
    if image.dirty_log is None:
        return image
    from vblk.drivers.vhdx_replay import replay_in_place

    await replay_in_place(file, image)
    return await load_image(
        lambda offset, length: read_up_to(file, offset, length),
        file.size,
        filename=image.filename,
        unfinished=unfinished,
    )


async def open_node(site: Site) -> VhdxNode:
    """Open a VHDX image as the site's options say, with its parents when asked.

    Raises:
        ImageError: The image or a parent is damaged, refused, or not to be found.
    """
    check_children(site.options, "vhdx", "file", "backing")
    options = bind(site.options.own, Options, "vhdx")
    rules = _merged_rules(site.request.rules, options)
    file = await site.child()
    if site.read_only:
        image = await load_image(
            lambda offset, length: read_up_to(file, offset, length),
            file.size,
            filename=site.filename,
            strict=rules.strict,
            unfinished=options.unfinished,
        )
    else:
        image = await load_sound(file, site.filename, strict=rules.strict, unfinished=options.unfinished)
    node = VhdxNode(site.name, site.filename, file=file, image=image)
    node.read_only = site.read_only
    await site.take(node, file)
    await _attach_backing(site, node, rules)
    if not site.read_only:  # nothing is changed before all parents were found
        node.adopt(await replayed(file, image, unfinished=options.unfinished))
        await node.start_writing()
    await node.begin_bitmaps(site.graph.engine)
    return node


async def _attach_backing(site: Site, node: VhdxNode, rules: ChainRules) -> None:
    if "backing" in site.options.children:
        wanted = site.options.children["backing"]
        if wanted is None:
            return
        if not node.image.has_parent:
            raise OptionError("Driver doesn't support backing files", filename=site.filename)
        # What the user said about the parent was about this image's, which the options name.
        site.request = site.request._replace(rules=site.request.rules._replace(parent=None))
        await site.attach_backing(node)
    elif not node.image.has_parent:
        return
    elif site.request.backing:
        from vblk.drivers.vhdx_parent import attach_parents

        await attach_parents(site, node, rules)
    else:
        node.backing_left_closed = True


def _merged_rules(rules: ChainRules, options: Options) -> ChainRules:
    """Let a node's own options add to what was said for the whole tree."""
    path_map: list[tuple[str, str]] = []
    for entry in options.path_map:
        source, equals, target = entry.partition("=")
        if not (source and equals and target):
            raise OptionError(f"path-map wants FROM=TO, not '{entry}'")
        path_map.append((source, target))
    return ChainRules(
        parent=options.parent or rules.parent,
        parent_dirs=(*rules.parent_dirs, *options.parent_dir),
        path_map=(*rules.path_map, *path_map),
        ignore_linkage=rules.ignore_linkage or options.ignore_linkage,
        strict=rules.strict or options.strict,
    )
