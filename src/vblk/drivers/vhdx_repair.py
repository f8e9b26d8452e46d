"""Repairing a VHDX file: the shell around what `vblk.formats.vhdx.repair` decides.

Owns: the steps of a repair and their order. It works on the file below the
image, which the caller holds for writing: an image that is damaged does not open
for writing, and its log is all that a repair needs of it.

Ordering rules:
- After each step the image is loaded and checked anew, so that no step builds on
  what an earlier one thought; a crash between two of them leaves an image with
  fewer findings, and the next repair goes on from there.
- First the log and the headers, by the rule of two copies; then tables, metadata
  and BAT entries, through the log, what belongs together in one entry of it.
- Entries that name space beyond the file's end are mended before the file grows.
- A copy of a block is durable before its entry is; it is made at the file's end,
  for what seems free in a damaged file may be somebody's.

Source: [MS-VHDX] "Headers", "Log", "Region Table", "Metadata Region", "BAT".
"""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vblk.codec.guid import ZERO_GUID, new_guid
from vblk.drivers.vhdx import CACHE_PAGES, read_up_to
from vblk.drivers.vhdx_replay import replay_in_place
from vblk.drivers.vhdx_session import Level, Session, publish_header
from vblk.formats.edits import EditedPages
from vblk.formats.vhdx import CheckReport, Severity, VhdxImage, load_image
from vblk.formats.vhdx.check import MESSAGES_PER_CODE, Flaw, Survey, survey_image
from vblk.formats.vhdx.header import LOG_VERSION, Header
from vblk.formats.vhdx.layout import BAT_ENTRY_SIZE, BAT_OFFSET_MASK, PAGE_SIZE, REGION_TABLE_OFFSETS
from vblk.formats.vhdx.repair import (
    HARMLESS_BESIDE_A_LOST_LOG,
    HEADER_CODES,
    LEAKS_LAST,
    LOG_PLACE_CODES,
    METADATA_CODES,
    REGION_CODES,
    VISIBLE_METADATA_CODES,
    Mend,
    Remedy,
    longest_end,
    mend,
    mended_metadata,
    mended_regions,
    names_space_beyond,
    owned_size,
    why_left,
)
from vblk.formats.vhdx.resizing import edit_bytes, pages_under
from vblk.graph.node import Node
from vblk.runtime.page_cache import PageCache
from vblk.units import MIB, align_up

FLAWS_MAX = 1 << 18
"""So many flaws of BAT entries are mended between two looks at the whole image."""

COPY_PIECE = MIB


@dataclass(frozen=True, slots=True)
class Act:
    """One repair that was made, or `lost` with it so many bytes of the disk; or why one was not."""

    code: str
    message: str
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair found, did and left.

    `before` and `after` are the checks around it, `image` as it is now. Of
    `done` and `left` there are at most 16 of each code.
    """

    before: CheckReport
    after: CheckReport
    image: VhdxImage
    done: tuple[Act, ...]
    left: tuple[Act, ...]
    lost_bytes: int

    @property
    def leaks_fixed(self) -> int:
        """How many leaks are gone."""
        return max(0, self.before.leaks - self.after.leaks)

    @property
    def corruptions_fixed(self) -> int:
        """How many other findings are gone."""
        before, after = self.before, self.after
        return max(0, before.errors + before.warnings - after.errors - after.warnings)


async def repair_image(file: Node, filename: str, *, leaks_only: bool = False) -> Repair:
    """Repair the image in `file`, as far as that is safe.

    Args:
        file: The node that stores it, open for writing; nobody else uses it.
        filename: The image's name, for errors.
        leaks_only: Give back space that nothing uses and leave damage alone. A
            log is written back all the same, as by every use.

    Raises:
        ImageError: It is no VHDX image, or damaged beyond reading: it is as it was.
        StorageError: Reading or writing failed; a repair can be tried again.
        NoSpace: Likewise.

    Concurrency: may suspend; a cancellation leaves an image with fewer findings.
    """
    return await _Repairer(file, filename, leaks_only).run()


class _Repairer:
    """One repair under way."""

    image: VhdxImage
    survey: Survey

    def __init__(self, file: Node, filename: str, leaks_only: bool) -> None:
        self._file = file
        self._filename = filename
        self._leaks_only = leaks_only
        self._done: list[Act] = []
        self._counts: Counter[str] = Counter()
        self._lost = 0

    async def run(self) -> Repair:
        """Take the steps, each until it finds nothing to do; what one uncovers may be an earlier one's."""
        await self._look()
        before = self.survey.report
        await self._file.flush()
        while await self._take_steps():
            pass
        after = self.survey.report
        for code in before.counts:
            if code not in after.counts and code not in self._counts:
                self._did(code, "mended together with something else")
        return Repair(before, after, self.image, tuple(self._done), tuple(self._left()), self._lost)

    async def _take_steps(self) -> bool:
        """Take each step once, or as often as it changes something; tell whether any did."""
        changed = False
        for step in self._steps():
            while self._can_change() and await step():
                changed = True
                await self._look()
        return changed

    def _steps(self) -> Sequence[Callable[[], Awaitable[bool]]]:
        if self._leaks_only:
            return (self._log, self._leaks, self._tail)
        return (
            self._log,
            self._headers,
            self._log_place,
            self._regions,
            self._metadata,
            self._entries,
            self._room,
            self._copies,
            self._tail,
        )

    async def _look(self) -> None:
        self.image = await load_image(self._read, self._file.size, filename=self._filename)
        self.survey = await survey_image(self.image, self._read, flaws_max=FLAWS_MAX)

    async def _read(self, offset: int, length: int) -> bytes:
        return await read_up_to(self._file, offset, length)

    def _has(self, codes: frozenset[str]) -> bool:
        return not codes.isdisjoint(self.survey.report.counts)

    def _can_change(self) -> bool:
        """Tell whether anything can be changed at all."""
        return "H18" not in self.survey.report.counts

    @property
    def _has_log(self) -> bool:
        """Whether changes can go through the log."""
        return not self.image.header.has_log and not self._has(LOG_PLACE_CODES)

    @property
    def _may_grow(self) -> bool:
        flaws = self.survey.flaws
        return len(flaws) < FLAWS_MAX and not names_space_beyond(self.image, self.survey.report.counts, flaws)

    def _did(self, code: str, message: str, lost: int = 0) -> None:
        self._counts[code] += 1
        self._lost += lost
        if self._counts[code] <= MESSAGES_PER_CODE:
            self._done.append(Act(code, message, lost))

    def _left(self) -> list[Act]:
        """Say why what is still there was not repaired."""
        report = self.survey.report
        if self._leaks_only:
            return [Act("B20", LEAKS_LAST)] if report.leaks else []
        flaws = {flaw.code: flaw for flaw in reversed(self.survey.flaws)}
        return [Act(code, why_left(self.image, code, flaws.get(code))) for code in report.counts]

    # Log and headers

    async def _log(self) -> bool:
        """Write the log back, or let go of one that holds nothing."""
        log = self.image.dirty_log
        if log is None:
            return False
        if log.replayable:
            await replay_in_place(self._file, self.image)
            self._did("L29", f"the log of {log.entries} entries is written back")
            return True
        report = self.survey.report
        errors = {finding.code for finding in report.findings if finding.severity is Severity.ERROR}
        if self._leaks_only or errors - HARMLESS_BESIDE_A_LOST_LOG:
            return False
        await self._publish(self.image.header._replace(log_guid=ZERO_GUID))
        self._did("L2", "the log, which held nothing, is empty")
        return True

    async def _headers(self) -> bool:
        if self.image.header.has_log or not self._has(HEADER_CODES):
            return False
        found = [code for code in self.survey.report.counts if code in HEADER_CODES]
        await self._publish(self.image.header._replace(log_version=LOG_VERSION))
        for code in found:
            self._did(code, "both headers are sound and say the same")
        return True

    async def _publish(self, header: Header, *, visible: bool = False) -> None:
        """Let the file's header, with other fields, be current in both copies."""
        header = header._replace(file_write_guid=new_guid())
        if visible:
            header = header._replace(data_write_guid=new_guid())
        await publish_header(self._file, header)

    async def _log_place(self) -> bool:
        """Give the file a log at its end."""
        if self.image.header.has_log or not self._has(LOG_PLACE_CODES) or not self._may_grow:
            return False
        found = [code for code in self.survey.report.counts if code in LOG_PLACE_CODES]
        if "B6" in self.survey.report.counts or "B7" in self.survey.report.counts:
            return await self._room()
        place = align_up(self._file.size, MIB)
        await self._file.resize(place + MIB)
        await self._file.flush()
        await self._publish(
            self.image.header._replace(log_offset=place, log_length=MIB, log_version=LOG_VERSION)
        )
        for code in found:
            self._did(code, f"the file has a log, at {place:#x}")
        return True

    # Tables

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator["_Changes", None]:
        """Change metadata through the log; what was changed is in place when the block has ended."""
        changes = _Changes(self._file, self.image, self._filename)
        try:
            yield changes
        finally:
            await changes.end()

    async def _regions(self) -> bool:
        if not self._has_log or not self._has(REGION_CODES):
            return False
        table = mended_regions(self.image)
        writes = [(at, table) for at in REGION_TABLE_OFFSETS]
        return await self._replace(writes, Level.FILE, REGION_CODES, "both region tables say the same")

    async def _metadata(self) -> bool:
        if not self._has_log or not self._has(METADATA_CODES):
            return False
        writes = mended_metadata(self.image, new_guid())
        if writes is None:
            return False
        level = Level.DATA if self._has(VISIBLE_METADATA_CODES) else Level.FILE
        return await self._replace(writes, level, METADATA_CODES, "the metadata is complete and sound")

    async def _replace(
        self, writes: list[tuple[int, bytes]], level: Level, codes: frozenset[str], message: str
    ) -> bool:
        """Replace bytes of metadata, all at once, unless they are so already."""
        found = [code for code in self.survey.report.counts if code in codes]
        if all([await self._read(at, len(data)) == data for at, data in writes]):
            return False
        async with self._session() as changes:
            await changes.write(writes, level)
        for code in found:
            self._did(code, message)
        return True

    # Blocks

    async def _mends_by(self, remedy: Remedy, flaws: Sequence[Flaw]) -> list[tuple[Flaw, Mend]]:
        """Decide about flaws of entries, as they are in the file; return those with this remedy."""
        mends: list[tuple[Flaw, Mend]] = []
        page_at, page = -1, b""
        for flaw in flaws:
            at = self.image.geometry.entry_offset(flaw.entry)
            if at & -PAGE_SIZE != page_at:
                page_at = at & -PAGE_SIZE
                page = await self._read(page_at, PAGE_SIZE)
            raw = page[at - page_at : at - page_at + BAT_ENTRY_SIZE]
            what = mend(self.image, flaw, int.from_bytes(raw, "little"))
            if what.remedy is remedy:
                mends.append((flaw, what))
        return mends

    async def _entries(self) -> bool:
        """Mend entries that only have to be replaced."""
        return await self._mend_entries(self.survey.flaws)

    async def _leaks(self) -> bool:
        """Take space from entries that are no block's, in an image that is sound otherwise."""
        if self.survey.report.read_only_reasons:
            return False
        return await self._mend_entries(
            [flaw for flaw in self.survey.flaws if flaw.severity is Severity.LEAK]
        )

    async def _mend_entries(self, flaws: Sequence[Flaw]) -> bool:
        if not self._has_log:
            return False
        mends = await self._mends_by(Remedy.REPLACE, flaws)
        async with self._session() as changes:
            seen: set[int] = set()
            for flaw, what in mends:
                if flaw.entry in seen:
                    continue  # what it becomes decides about its other flaws
                seen.add(flaw.entry)
                await changes.entry(flaw.entry, what.entry, Level.DATA if what.lost else Level.FILE)
                self._did(flaw.code, what.message, what.lost)
        return bool(mends)

    async def _room(self) -> bool:
        """Make the file long enough for blocks that reach beyond its end."""
        if self.image.header.has_log or not self._may_grow:
            return False
        mends = await self._mends_by(Remedy.EXTEND, self.survey.flaws)
        if not mends:
            return False
        end = longest_end(self.image, [(flaw.entry, what.entry) for flaw, what in mends])
        await self._publish(self.image.header, visible=any(what.lost for _, what in mends))
        await self._file.resize(align_up(end, MIB))
        await self._file.flush()
        for flaw, what in mends:
            self._did(flaw.code, what.message, what.lost)
        return True

    async def _copies(self) -> bool:
        """Give blocks that lie over others a place of their own."""
        if not self._has_log or not self._may_grow:
            return False
        mends = await self._mends_by(Remedy.MOVE, self.survey.flaws)
        async with self._session() as changes:
            for flaw, what in mends:
                size = owned_size(self.image, flaw.entry)
                await changes.begin(Level.FILE)
                place = align_up(self._file.size, MIB)
                await self._file.resize(place + size)
                await self._copy(what.entry & BAT_OFFSET_MASK, place, size)
                entry = what.entry & ~BAT_OFFSET_MASK | place
                await changes.entry(flaw.entry, entry, Level.FILE, barrier=True)
                self._did(flaw.code, f"{what.message}, at {place:#x}")
        return bool(mends)

    async def _copy(self, source: int, target: int, length: int) -> None:
        """Copy within the file to where it reads as zeros."""
        for done in range(0, length, COPY_PIECE):
            data = await self._read(source + done, min(COPY_PIECE, length - done))
            if data.strip(b"\0"):
                await self._file.write(target + done, data)

    async def _tail(self) -> bool:
        """Cut off what nothing owns behind the last block."""
        report = self.survey.report
        end = align_up(report.image_end_offset, MIB)
        unused = self._file.size - end
        if (
            self.image.header.has_log
            or report.errors
            or not self.survey.anchors_complete
            or self.image.type == "fixed"
            or unused < MIB
        ):
            return False
        await self._publish(self.image.header)
        await self._file.resize(end)
        await self._file.flush()
        self._did("B22", f"{unused} bytes behind the last block are cut off")
        return True


class _Changes:
    """A session of the file, and the pages that go through its log."""

    def __init__(self, file: Node, image: VhdxImage, filename: str) -> None:
        self._file = file
        self._geometry = image.geometry
        self._store: PageCache[bytes] = PageCache(limit_pages=CACHE_PAGES)
        self._edits = EditedPages(self._store)
        self._session = Session(
            file,
            image.header,
            self._edits,
            filename=filename,
            durable=lambda released: None,
            header_changed=lambda header: None,
        )

    async def begin(self, level: Level) -> None:
        """Return when the file may be changed as far as `level` says."""
        await self._session.begin(level)

    async def entry(self, index: int, entry: int, level: Level, *, barrier: bool = False) -> None:
        """Replace a BAT entry; with `barrier` what was written before is durable first."""
        data = entry.to_bytes(BAT_ENTRY_SIZE, "little")
        await self.write([(self._geometry.entry_offset(index), data)], level, barrier=barrier)

    async def write(self, writes: list[tuple[int, bytes]], level: Level, *, barrier: bool = False) -> None:
        """Replace bytes of metadata, all of them or none."""
        await self.begin(level)
        pages = sorted({page for at, data in writes for page in pages_under(at, len(data))})
        while not self._edits.try_reserve(len(pages)):
            await self._session.flush()
        try:
            with self._store.pinned(pages):
                for page in pages:
                    if self._store.get(page) is None:
                        self._store.put(page, await read_up_to(self._file, page, PAGE_SIZE))
                for at, data in writes:
                    edit_bytes(self._edits, at, data)
                self._edits.require(barrier=barrier, released=[])
        finally:
            self._edits.unreserve(len(pages))

    async def end(self) -> None:
        """Bring everything to its place, unless something failed: then the log is left for the next."""
        if not self._session.failed:
            await self._session.end()
