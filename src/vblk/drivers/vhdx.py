"""VHDX as a node: the shell around the pure reader.

Owns: loading the pages of metadata that a lookup asks for, and the options of a
VHDX node. What the bytes mean is `vblk.formats.vhdx`; who the parent is,
`vblk.drivers.vhdx_parent`.

Ordering rule: every metadata range that is loaded passes through the overlay of
the replayed log before anyone looks at it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vblk.errors import OptionError, Unsupported
from vblk.extent import Extent, Missing
from vblk.formats.vhdx import Candidate, VhdxImage, load_image
from vblk.graph.edge import Role
from vblk.graph.mapper import INLINE_MAX, Mapper
from vblk.graph.node import Node, Preallocation, Span
from vblk.graph.site import ChainRules, Site
from vblk.options import bind, check_children
from vblk.runtime.page_cache import PageCache
from vblk.units import KIB

if TYPE_CHECKING:
    from vblk.formats.vhdx import CheckReport

PAGE = 4 * KIB
CACHE_PAGES = 4096
"""16 MiB of BAT and bitmap pages: the BAT of 2 TiB at 1 MiB blocks."""
BLOCK_STARTS_MAX = 1 << 16
"""How many blocks' starts are remembered: some megabytes at most."""

_NO_WRITING = "writing to VHDX images is not supported in this version of vblk: open it read-only"


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
    """

    strict: bool = False
    parent: str | None = None
    parent_dir: list[str] = field(default_factory=list[str])
    path_map: list[str] = field(default_factory=list[str])
    ignore_linkage: bool = False


class VhdxNode(Mapper):
    """A VHDX image, open for reading."""

    driver = "vhdx"

    def __init__(self, name: str, filename: str, *, file: Node, image: VhdxImage) -> None:
        super().__init__(name, filename, read_only=True, file=file)
        self.image = image
        self._size = image.virtual_size
        self._locate = image.locate
        self.search: Search | None = None
        self._pages: PageCache[bytes] = PageCache(page_size=PAGE, limit_pages=CACHE_PAGES)
        self._block_starts: dict[int, int] = {}
        self._block_shift = image.block_size.bit_length() - 1
        self._within_block = image.block_size - 1
        self.lookup_step = image.lookup_step

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self._size

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read at once: the short way for a range inside a block that was read before."""
        within = offset & self._within_block
        start = self._block_starts.get(offset >> self._block_shift)
        if start is not None and length <= INLINE_MAX and within + length <= self._within_block + 1:
            return self._file.try_read(start + within, length)
        return super().try_read(offset, length)

    def lookup(self, offset: int, length: int) -> Sequence[Extent] | Missing:
        """Translate through BAT and sector bitmaps."""
        return self.image.lookup(offset, length, self._pages)

    def locate(self, offset: int, length: int) -> int | None:
        """Find a range inside one present block whose BAT page is loaded.

        Where the block starts is remembered: an image that is only read never
        moves one.
        """
        file_offset = self._locate(offset, length, self._pages)
        if file_offset is not None:
            if len(self._block_starts) >= BLOCK_STARTS_MAX:
                self._block_starts.clear()
            self._block_starts[offset >> self._block_shift] = file_offset - (offset & self._within_block)
        return file_offset

    async def load(self, missing: Missing, pins: ExitStack) -> None:
        """Read metadata pages, as they are after the log's replay."""
        for start, length in missing.ranges:
            pins.enter_context(self._pages.pinned(range(start, start + length, PAGE)))
            data = self.image.patch(start, await read_up_to(self._file, start, length))
            for at in range(0, length, PAGE):
                self._pages.put(start + at, data[at : at + PAGE])

    def place(self, offset: int, length: int) -> AbstractAsyncContextManager[list[Span]]:
        """Refuse: this version does not write VHDX."""
        raise Unsupported(_NO_WRITING, filename=self.filename)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Refuse: this version does not write VHDX."""
        raise Unsupported(_NO_WRITING, filename=self.filename)

    async def discard(self, offset: int, length: int) -> None:
        """Refuse: this version does not write VHDX."""
        raise Unsupported(_NO_WRITING, filename=self.filename)

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Refuse: this version does not write VHDX."""
        raise Unsupported(_NO_WRITING, filename=self.filename)

    async def reopen(self, *, read_only: bool) -> None:
        """Stay read-only, or refuse."""
        if not read_only:
            raise Unsupported(_NO_WRITING, filename=self.filename)

    async def check(self) -> "CheckReport":
        """Check the whole image, as it reads after the log's replay."""
        from vblk.formats.vhdx import check_image

        return await check_image(self.image, self._read_metadata)

    async def scan(self) -> None:
        """Look through the block table, bounded, so that `image.findings` tells of it."""
        from vblk.formats.vhdx import scan_image

        await scan_image(self.image, self._read_metadata)

    def info(self) -> Mapping[str, Any]:
        """Return what `vblk info` shows under "Format specific information"."""
        return self.image.describe()

    async def close(self) -> None:
        """Forget the pages."""
        self._pages.clear()

    async def _read_metadata(self, offset: int, length: int) -> bytes:
        return await read_up_to(self._file, offset, length)


async def read_up_to(file: Node, offset: int, length: int) -> bytes:
    """Read from a node, short at its end."""
    return await file.read(offset, max(0, min(length, file.size - offset)))


async def open_node(site: Site) -> VhdxNode:
    """Open a VHDX image as the site's options say, with its parents when asked.

    Raises:
        ImageError: The image or a parent is damaged, refused, or not to be found.
        Unsupported: It was to be opened for writing.
    """
    check_children(site.options, "vhdx", "file", "backing")
    rules = _merged_rules(site.request.rules, bind(site.options.own, Options, "vhdx"))
    file = await site.child()
    image = await load_image(
        lambda offset, length: read_up_to(file, offset, length),
        file.size,
        filename=site.filename,
        strict=rules.strict,
    )
    if not site.read_only:
        raise Unsupported(_NO_WRITING, filename=site.filename)
    node = VhdxNode(site.name, site.filename, file=file, image=image)
    await site.take(node, file)
    await _attach_backing(site, node, rules)
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
        backing = await site.child("backing")
        site.graph.attach(node, Role.BACKING, backing)
        node.attach_backing(backing)
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
