"""Loading an image: from bytes to `VhdxImage`, or to a typed error.

Owns: the order in which structures are read and believed.
Ordering rule: identifier, headers, then the log; everything else is read through
the log's overlay, for the log may have replaced all of it. Every length is
checked before it is read, and no read exceeds 1 MiB: the BAT is never loaded.

Source: [MS-VHDX] "Opening".
"""

from collections.abc import Mapping

from vblk.codec.guid import Guid
from vblk.codec.ranges import overlap
from vblk.errors import CorruptImage, ImageError, NeedsReplay, Reason
from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.header import Header, check_header, choose_header, parse_identifier
from vblk.formats.vhdx.image import DirtyLog, VhdxImage
from vblk.formats.vhdx.layout import (
    BAT_ENTRY_SIZE,
    FIXED_AREA_SIZE,
    HEADER_AREA_SIZE,
    HEADER_OFFSETS,
    HEADER_SIZE,
    ITEM_PARENT_LOCATOR,
    METADATA_TABLE_SIZE,
    REGION_TABLE_OFFSETS,
    REGION_TABLE_SIZE,
)
from vblk.formats.vhdx.locator import ParentLocator, parse_locator
from vblk.formats.vhdx.metadata import DiskFacts, MetadataTable, parse_disk_facts, parse_table
from vblk.formats.vhdx.overlay import NO_OVERLAY, Overlay
from vblk.formats.vhdx.region import Region, RegionTable, choose_table
from vblk.formats.vhdx.replay import Read, Replay, find_sequence, replay_into_memory


async def load_image(
    read: Read, file_size: int, *, filename: str, strict: bool = False, unfinished: bool = False
) -> VhdxImage:
    """Load the facts of a VHDX image.

    Args:
        read: Reads (file offset, length) and returns short only at the file's end.
        file_size: Length of the file in bytes.
        filename: For errors.
        strict: Refuse an image whose log is not empty instead of replaying it
            in memory.
        unfinished: Accept an image whose creation is under way.

    Raises:
        WrongFormat: It is no VHDX image.
        CorruptImage: It is damaged beyond reading.
        UnsupportedFeature: It requires what this version does not know.
        NeedsReplay: `strict` is set and the log is not empty.

    Concurrency: may suspend; the file must not change meanwhile.
    """
    try:
        return await _Loader(read, file_size, filename, strict, unfinished).load()
    except ImageError as error:
        if error.filename is None:
            error.filename = filename
        raise


class _Loader:
    """The image under construction."""

    def __init__(self, read: Read, file_size: int, filename: str, strict: bool, unfinished: bool) -> None:
        self._read = read
        self._file_size = file_size
        self._filename = filename
        self._strict = strict
        self._unfinished = unfinished
        self._overlay: Overlay = NO_OVERLAY
        self._findings: list[Finding] = []
        self._reasons: list[str] = []

    async def load(self) -> VhdxImage:
        fixed_area = await self._read(0, min(FIXED_AREA_SIZE, self._file_size))
        creator = parse_identifier(fixed_area)
        if self._file_size < HEADER_AREA_SIZE or len(fixed_area) < FIXED_AREA_SIZE:
            raise CorruptImage(
                Reason.TRUNCATED,
                f"the file has {self._file_size:#x} bytes; headers and region tables take the first MiB",
                offset=self._file_size,
            )
        header = self._choose_header(fixed_area)
        replay = await self._replay(header)
        target_length = max(self._file_size, self._overlay.required_length)
        regions = self._choose_regions(header, fixed_area, target_length)
        items, facts, locator = await self._load_metadata(regions.metadata)
        image = VhdxImage(
            filename=self._filename,
            file_size=self._file_size,
            creator=creator,
            header=header,
            regions=regions,
            items=items,
            facts=facts,
            locator=locator,
            overlay=self._overlay,
            dirty_log=_describe_log(header, replay, regions, target_length),
            findings=self._findings,
            read_only_reasons=self._reasons,
        )
        needed = image.geometry.entries * BAT_ENTRY_SIZE
        if needed > regions.bat.length:
            raise CorruptImage(
                Reason.BAD_VALUE,
                f"the BAT needs {needed} bytes for a disk of {facts.virtual_size} bytes; its region has "
                f"{regions.bat.length}",
                offset=regions.bat.file_offset,
            )
        return image

    def _choose_header(self, fixed_area: bytes) -> Header:
        first, second = (fixed_area[at : at + HEADER_SIZE] for at in HEADER_OFFSETS)
        headers = choose_header((first, second))
        verdict = check_header(headers.current, self._file_size)
        self._findings += headers.findings + verdict.findings
        self._reasons += verdict.read_only_reasons
        return headers.current

    async def _replay(self, header: Header) -> Replay | None:
        if not header.has_log:
            return None
        if self._strict:
            raise NeedsReplay(
                Reason.DIRTY_LOG,
                "the image was not closed properly: its log must be replayed first",
                offset=header.log_offset,
            )
        sequence = await find_sequence(self._read, header)
        if sequence is None:
            message = "the log is in use and no complete sequence of entries is in it; it is ignored"
            self._findings.append(Finding("L2", Severity.ERROR, message, header.log_offset))
            self._reasons.append(message)
            return None
        replay = await replay_into_memory(self._read, header, sequence, self._file_size)
        self._overlay = replay.overlay
        self._findings.append(
            Finding(
                "L29",
                Severity.WARNING,
                f"the image was not closed properly: its log of {len(sequence.entries)} entries is replayed "
                "in memory",
                header.log_offset,
            )
        )
        return replay

    def _choose_regions(self, header: Header, fixed_area: bytes, target_length: int) -> RegionTable:
        first, second = (
            self._overlay.patch(at, fixed_area[at : at + REGION_TABLE_SIZE]) for at in REGION_TABLE_OFFSETS
        )
        regions = choose_table((first, second), target_length)
        self._findings += regions.findings
        self._reasons += regions.read_only_reasons
        for region in regions.all():
            if overlap(region.file_offset, region.length, header.log_offset, header.log_length):
                raise CorruptImage(
                    Reason.OVERLAP,
                    f"the log at {header.log_offset:#x} overlaps the {region.name}",
                    offset=header.file_offset + 72,
                )
        return regions

    async def _patched(self, file_offset: int, length: int) -> bytes:
        """Read metadata as the log leaves it; the caller checked that the file reaches there."""
        data = await self._read(file_offset, length)
        return self._overlay.patch(file_offset, data + bytes(length - len(data)))

    async def _load_metadata(self, region: Region) -> tuple[MetadataTable, DiskFacts, ParentLocator | None]:
        # The items mostly follow the table at once, so that one read brings all.
        start = await self._patched(region.file_offset, 2 * METADATA_TABLE_SIZE)
        items = parse_table(
            start[:METADATA_TABLE_SIZE], region.file_offset, region.length, unfinished=self._unfinished
        )
        self._findings += items.findings
        content = await self._load_items(items, region, start)
        facts = parse_disk_facts(items, content, region.file_offset)
        self._findings += facts.findings
        self._reasons += facts.read_only_reasons
        locator = None
        if facts.has_parent:
            place = region.file_offset + items.known[ITEM_PARENT_LOCATOR].offset
            locator = parse_locator(content[ITEM_PARENT_LOCATOR], place, self._filename)
        return items, facts, locator

    async def _load_items(self, items: MetadataTable, region: Region, start: bytes) -> Mapping[Guid, bytes]:
        content: dict[Guid, bytes] = {}
        for item_id, item in items.known.items():
            if item.offset + item.length <= len(start):
                content[item_id] = start[item.offset : item.offset + item.length]
            else:
                content[item_id] = await self._patched(region.file_offset + item.offset, item.length)
        return content


def _describe_log(
    header: Header, replay: Replay | None, regions: RegionTable, target_length: int
) -> DirtyLog | None:
    if not header.has_log:
        return None
    if replay is None:
        return DirtyLog(False, 0, 0, 0, 0, {}, target_length)
    overlay = replay.overlay
    zeroed = sum(end - start for start, end in overlay.zeroed.ranges())
    touches: dict[str, int] = {}
    tables = sum(overlay.changed_in(at, at + REGION_TABLE_SIZE) for at in REGION_TABLE_OFFSETS)
    if tables:
        touches["region tables"] = tables
    for region in regions.all():
        changed = overlay.changed_in(region.file_offset, region.file_offset + region.length)
        if changed:
            touches[region.name] = changed
    rest = overlay.changed_in(0, 1 << 64) - sum(touches.values())
    if rest:
        touches["blocks and sector bitmaps"] = rest
    return DirtyLog(
        True,
        len(replay.sequence.entries),
        replay.descriptors,
        len(overlay.pages),
        zeroed,
        touches,
        target_length,
    )
