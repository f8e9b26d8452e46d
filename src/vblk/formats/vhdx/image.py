"""An opened VHDX image: what it is, where its bytes are, what is odd about it.

Owns: `VhdxImage`, the immutable facts, and the questions that drivers and
commands ask of them. It must not read: `loading` builds it.

Source: [MS-VHDX].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from vblk.codec.guid import Guid
from vblk.extent import Extent, Missing
from vblk.formats.vhdx.bat import Geometry, Placement, Reserved
from vblk.formats.vhdx.describe import describe
from vblk.formats.vhdx.finding import Finding
from vblk.formats.vhdx.header import Header
from vblk.formats.vhdx.layout import HEADER_AREA_SIZE
from vblk.formats.vhdx.locator import ParentLocator
from vblk.formats.vhdx.mapping import BlockMap, Locate, Pages
from vblk.formats.vhdx.metadata import DiskFacts, MetadataItem, MetadataTable
from vblk.formats.vhdx.overlay import Overlay
from vblk.formats.vhdx.region import Region, RegionTable


class DirtyLog(NamedTuple):
    """A log that was not written back when the image was last closed.

    `replayable` is false when the log names a session of which no complete
    sequence of entries is there. `touches` counts the bytes that replay changes,
    by the structure they belong to. `target_length` is the length in bytes that
    the file has after replay.
    """

    replayable: bool
    entries: int
    descriptors: int
    pages: int
    zeroed_bytes: int
    touches: dict[str, int]
    target_length: int


class VhdxImage:
    """The facts of one image, and its map.

    `findings` are what is odd about it, as far as was looked (loading looks at
    everything but the BAT), `read_only_reasons` why it must not be
    written (empty: it may). `unknown_items` and `regions.unknown` are to be
    kept as they are by whoever rewrites the file. All sizes are bytes.
    """

    __slots__ = (
        "_overlay",
        "creator",
        "dirty_log",
        "facts",
        "file_size",
        "filename",
        "findings",
        "geometry",
        "header",
        "items",
        "loading_findings",
        "loading_read_only_reasons",
        "locate",
        "locator",
        "lookup",
        "lookup_step",
        "placement",
        "read_only_reasons",
        "regions",
    )

    locate: Locate
    """As `mapping.make_locate` describes."""
    lookup: Callable[[int, int, Pages], list[Extent] | Missing]
    """As `BlockMap.lookup`."""

    def __init__(
        self,
        *,
        filename: str,
        file_size: int,
        creator: str,
        header: Header,
        regions: RegionTable,
        items: MetadataTable,
        facts: DiskFacts,
        locator: ParentLocator | None,
        overlay: Overlay,
        dirty_log: DirtyLog | None,
        findings: list[Finding],
        read_only_reasons: list[str],
    ) -> None:
        self.filename = filename
        self.file_size = file_size
        self.creator = creator
        self.header = header
        self.regions = regions
        self.items = items
        self.facts = facts
        self.locator = locator
        self.dirty_log = dirty_log
        self.loading_findings = tuple(findings)
        self.loading_read_only_reasons = tuple(read_only_reasons)
        self.findings = findings
        self.read_only_reasons = read_only_reasons
        self._overlay = overlay
        self.geometry = Geometry(
            facts.virtual_size,
            facts.block_size,
            facts.logical_sector_size,
            facts.has_parent,
            regions.bat.file_offset,
            regions.bat.length,
        )
        self.placement = Placement(
            reserved_ranges(header, regions.all()), max(file_size, overlay.required_length)
        )
        block_map = BlockMap(self.geometry, self.placement, file_size, filename)
        self.locate = block_map.locate
        self.lookup = block_map.lookup
        self.lookup_step = block_map.lookup_step

    def changed(
        self,
        *,
        header: Header | None = None,
        file_size: int | None = None,
        facts: DiskFacts | None = None,
        regions: RegionTable | None = None,
        items: MetadataTable | None = None,
        locator: ParentLocator | None = None,
    ) -> "VhdxImage":
        """Return the image with some of its facts replaced: what a writer made of a clean one."""
        assert self.dirty_log is None, "a log must be replayed before anything is changed"
        return VhdxImage(
            filename=self.filename,
            file_size=self.file_size if file_size is None else file_size,
            creator=self.creator,
            header=header or self.header,
            regions=regions or self.regions,
            items=items or self.items,
            facts=facts or self.facts,
            locator=(locator or self.locator) if (facts or self.facts).has_parent else None,
            overlay=self._overlay,
            dirty_log=None,
            findings=self.findings,
            read_only_reasons=self.read_only_reasons,
        )

    @property
    def overlay(self) -> Overlay:
        """What the log changes, until it is replayed."""
        return self._overlay

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk that a guest sees."""
        return self.facts.virtual_size

    @property
    def block_size(self) -> int:
        """Bytes of a payload block."""
        return self.facts.block_size

    @property
    def logical_sector_size(self) -> int:
        """Bytes of a sector: 512 or 4096."""
        return self.facts.logical_sector_size

    @property
    def physical_sector_size(self) -> int:
        """Bytes of the sectors that a guest should align to: 512 or 4096."""
        return self.facts.physical_sector_size

    @property
    def type(self) -> str:
        """One of fixed, dynamic, differencing; a hint for allocation, no more."""
        if self.facts.has_parent:
            return "differencing"
        return "fixed" if self.facts.leave_blocks_allocated else "dynamic"

    @property
    def has_parent(self) -> bool:
        """Whether NOT_PRESENT blocks are the parent's."""
        return self.facts.has_parent

    @property
    def disk_id(self) -> Guid:
        """The disk's SCSI identity; a child has its parent's."""
        return self.facts.disk_id

    @property
    def file_write_guid(self) -> Guid:
        """Changes with every session that changes the file."""
        return self.header.file_write_guid

    @property
    def data_write_guid(self) -> Guid:
        """Changes with every session that changes what a guest sees: children link to it."""
        return self.header.data_write_guid

    @property
    def log_guid(self) -> Guid:
        """Zero when the log is clean."""
        return self.header.log_guid

    @property
    def sequence_number(self) -> int:
        """The current header's."""
        return self.header.sequence_number

    @property
    def unknown_items(self) -> tuple[MetadataItem, ...]:
        """Metadata items that this version does not know and must keep."""
        return self.items.unknown

    @property
    def unknown_regions(self) -> tuple[Region, ...]:
        """Regions that this version does not know and must keep."""
        return self.regions.unknown

    @property
    def target_length(self) -> int:
        """Length of the file in bytes, as the log leaves it."""
        return self.placement.file_size

    def tell(self, findings: list[Finding], read_only_reasons: list[str]) -> None:
        """Take over what a scan of the BAT found, beside what loading did."""
        self.findings = list(findings)
        self.read_only_reasons = list(read_only_reasons)

    def describe(self) -> dict[str, Any]:
        """Return what `info` shows of this format, ready for JSON."""
        return describe(self)

    def patch(self, file_offset: int, data: bytes, length: int | None = None) -> bytes:
        """Return metadata read from the file as it is after replay.

        Every range of metadata that is read from the file must go through here.

        Args:
            file_offset: Where `data` was read.
            data: What was read; short when the file ends there.
            length: How many bytes to return, > 0; what the file has not is
                zeros. By default `data` is filled up to a multiple of 4096.
        """
        wanted = -(-len(data) // 4096) * 4096 if length is None else length
        if len(data) < wanted:
            data = bytes(data) + bytes(wanted - len(data))
        return self._overlay.patch(file_offset, data)


def reserved_ranges(header: Header, regions: tuple[Region, ...]) -> list[Reserved]:
    """List what no block may touch: the headers, the log and every region."""
    ranges = [Reserved(0, HEADER_AREA_SIZE, "header area")]
    if header.log_length:
        ranges.append(Reserved(header.log_offset, header.log_offset + header.log_length, "log"))
    ranges += [
        Reserved(region.file_offset, region.file_offset + region.length, region.name) for region in regions
    ]
    return ranges
