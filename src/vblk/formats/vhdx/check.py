"""The check: a walk over the whole BAT.

Owns: what is wrong with entries that a lookup would only meet by chance, and
what two entries do to each other. It must not change anything.
Ordering rule: entries are judged in the order of the table; who comes first
owns the place, and the later one is reported.

Source: [MS-VHDX] "BAT".
"""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from vblk.errors import CorruptImage, Reason
from vblk.formats.vhdx.bat import (
    BITMAP_PRESENT,
    ENTRIES_SINGLY,
    Fault,
    State,
    bitmap_fault,
    is_progression,
    payload_fault,
)
from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.image import VhdxImage
from vblk.formats.vhdx.layout import (
    BAT_ENTRY_SIZE,
    BAT_OFFSET_MASK,
    BAT_RESERVED_MASK,
    BAT_STATE_MASK,
    CHECK_OFFSET_MAX,
    PAGE_SIZE,
    SECTOR_BITMAP_SIZE,
)
from vblk.formats.vhdx.ownership import Owner, OwnershipTable
from vblk.formats.vhdx.replay import Read
from vblk.units import MIB

MESSAGES_PER_CODE = 16
"""Findings of one code beyond this many are counted, not kept."""

ANCHORS_MAX = 1 << 20
"""Places that UNMAPPED and UNDEFINED blocks hold on to and that are compared with live blocks."""

BRIEF_ENTRIES_MAX = 1 << 17
BRIEF_BYTES_MAX = 64 * MIB
"""How far a brief scan, as `info` makes it, goes."""

FORBIDS_WRITING = frozenset(
    ("B1", "B2", "B3", "B4", "B5", "B6", "B8", "B9", "B10", "B11", "B15", "B16", "B17")
)
"""Codes of findings with which an image must not be written."""


def writing_refused(reason: str, filename: str) -> CorruptImage:
    """Return the error that says why an image is not opened for writing, and what can be done about it."""
    return CorruptImage(
        Reason.BAD_VALUE,
        f"the image must not be written: {reason} ('vblk check -r all' repairs what is safe to repair)",
        filename=filename,
    )


def _new_states() -> Counter[str]:
    return Counter()


@dataclass(slots=True)
class CheckReport:
    """What a scan found.

    `findings` holds at most 16 of each code, `counts` the true numbers by code;
    `errors`, `warnings` and `leaks` are true numbers too. `states` counts the
    blocks by state. Blocks are `image.block_size` bytes. `unused_bytes` is space
    inside the file that nothing owns: a writer may use it. `complete` is false
    where a brief scan stopped before the end of the BAT.
    """

    findings: list[Finding]
    counts: Counter[str] = field(default_factory=_new_states)
    errors: int = 0
    warnings: int = 0
    leaks: int = 0
    total_blocks: int = 0
    allocated_blocks: int = 0
    fragmented_blocks: int = 0
    states: Counter[str] = field(default_factory=_new_states)
    image_end_offset: int = 0
    unused_bytes: int = 0
    leaked_bytes: int = 0
    complete: bool = True
    read_only_reasons: list[str] = field(default_factory=lambda: list[str]())

    def record(self, finding: Finding) -> None:
        """Count a finding, and keep it while there are few of its code."""
        self.counts[finding.code] += 1
        if self.counts[finding.code] <= MESSAGES_PER_CODE:
            self.findings.append(finding)
        if finding.severity is Severity.ERROR:
            self.errors += 1
        elif finding.severity is Severity.WARNING:
            self.warnings += 1
        else:
            self.leaks += 1
        if finding.code in FORBIDS_WRITING and self.counts[finding.code] == 1:
            self.read_only_reasons.append(finding.message)


class Flaw(NamedTuple):
    """A finding about the BAT entry of index `entry`, for who repairs it.

    `needed` is false where it is a sector bitmap's and no block depends on it.
    """

    code: str
    severity: Severity
    entry: int
    needed: bool


async def check_image(image: VhdxImage, read: Read) -> CheckReport:
    """Walk the whole BAT and report every violation.

    Args:
        image: As loaded.
        read: Reads (file offset, length) and returns short only at the file's end.

    Concurrency: may suspend. Memory: one byte for every MiB of the file that
        blocks own, and a bounded number of messages.
    """
    return await _walk(image, read)


@dataclass(frozen=True, slots=True)
class Survey:
    """What a writer must know of the whole BAT.

    `owners` has everything that blocks and sector bitmaps own, and the places
    that unmapped blocks hold on to; `anchors` are the file offsets of these.
    With `anchors_complete` false there are more of them than were looked at:
    then no place may be called free. `flaws` are as many as were asked for.
    """

    report: CheckReport
    owners: OwnershipTable
    anchors: frozenset[int]
    anchors_complete: bool
    flaws: list[Flaw]


async def survey_image(image: VhdxImage, read: Read, *, flaws_max: int = 0) -> Survey:
    """Walk the whole BAT as `check_image` does, and say what owns the file's space.

    Concurrency: may suspend.
    """
    walk = _Scan(image, None, flaws_max)
    report = await _run(walk, image, read, image.regions.bat.length)
    return Survey(report, walk.owners, frozenset(walk.anchors_held), walk.anchors_complete, walk.flaws)


async def scan_image(
    image: VhdxImage,
    read: Read,
    *,
    entries_max: int = BRIEF_ENTRIES_MAX,
    bytes_max: int = BRIEF_BYTES_MAX,
) -> CheckReport:
    """Scan as far as is quick, and let `image` tell what was found.

    Args:
        image: As loaded; its findings and read-only reasons are replaced by the
            report's, which begin with them.
        read: Reads (file offset, length) and returns short only at the file's end.
        entries_max: Stop after this many entries that had to be looked at singly.
        bytes_max: Stop after this many bytes of BAT.

    Returns: the report; `complete` says whether the scan came to the end.

    Concurrency: may suspend.
    """
    report = await _walk(image, read, entries_max=entries_max, bytes_max=bytes_max)
    image.tell(report.findings, report.read_only_reasons)
    return report


async def _walk(
    image: VhdxImage, read: Read, *, entries_max: int | None = None, bytes_max: int | None = None
) -> CheckReport:
    """Walk the BAT, up to a limit."""
    length = image.regions.bat.length
    return await _run(
        _Scan(image, entries_max), image, read, length if bytes_max is None else min(length, bytes_max)
    )


async def _run(walk: "_Scan", image: VhdxImage, read: Read, limit: int) -> CheckReport:
    region = image.regions.bat
    for start in range(0, limit, MIB):
        data = await read(region.file_offset + start, MIB)
        walk.window(start // BAT_ENTRY_SIZE, image.patch(region.file_offset + start, data, MIB))
        if walk.exhausted:
            break
    else:
        walk.exhausted = limit < region.length
    return walk.finish()


class _Scan:
    """One scan under way."""

    def __init__(self, image: VhdxImage, entries_max: int | None, flaws_max: int = 0) -> None:
        self._image = image
        self._geometry = image.geometry
        self._placement = image.placement
        self._entries_left = entries_max
        self._flaws_max = flaws_max
        self.flaws: list[Flaw] = []
        self.owners = OwnershipTable()
        self._anchors = array("Q")
        self.anchors_held: list[int] = []
        self._chunk_is_partial = False
        self._previous_end = -1
        self._end_offset = self._placement.floor
        self.exhausted = False
        self.report = CheckReport([])
        self.report.total_blocks = self._geometry.payload_blocks
        self.report.read_only_reasons += image.loading_read_only_reasons
        for finding in image.loading_findings:
            self.report.record(finding)

    @property
    def anchors_complete(self) -> bool:
        """Whether no more places were held on to than are looked at."""
        return len(self._anchors) < 2 * ANCHORS_MAX

    def window(self, index: int, data: bytes) -> None:
        """Judge the entries from `index` on that are in `data`, segment by segment."""
        geometry = self._geometry
        stride = geometry.chunk_ratio + 1
        last = index + len(data) // BAT_ENTRY_SIZE
        at = 0
        while index < last and not self.exhausted:
            position = index % stride
            block = index - index // stride
            if index >= geometry.entries:
                count = last - index
                self._beyond(index, data[at:])
            elif position == geometry.chunk_ratio:
                count = 1
                self._bitmap_entry(index // stride, index, data[at : at + BAT_ENTRY_SIZE])
            elif block >= geometry.payload_blocks:
                count = min(geometry.chunk_ratio - position, last - index)
                self._beyond(index, data[at : at + count * BAT_ENTRY_SIZE])
            else:
                count = min(
                    geometry.chunk_ratio - position,
                    geometry.payload_blocks - block,
                    last - index,
                    PAGE_SIZE // BAT_ENTRY_SIZE - index % (PAGE_SIZE // BAT_ENTRY_SIZE),
                )
                self._segment(block, index, data[at : at + count * BAT_ENTRY_SIZE], count)
            index += count
            at += count * BAT_ENTRY_SIZE

    def finish(self) -> CheckReport:
        """Compare what only can be compared at the end, and hand the report over."""
        report = self.report
        report.complete = not self.exhausted
        for position in range(0, len(self._anchors), 2):
            self._judge_anchor(self._anchors[position], self._anchors[position + 1])
        file_size = self._image.file_size
        reserved = sum(max(0, min(item.end, file_size) - item.start) for item in self._placement.reserved)
        if report.complete:
            report.unused_bytes = max(0, file_size - reserved - self.owners.claimed)
        report.image_end_offset = self._end_offset
        return report

    def _record(
        self, code: str, severity: Severity, message: str, index: int, *, needed: bool = True
    ) -> None:
        self.report.record(Finding(code, severity, message, self._geometry.entry_offset(index)))
        if len(self.flaws) < self._flaws_max:
            self.flaws.append(Flaw(code, severity, index, needed))

    def _spend(self, count: int) -> bool:
        """Take `count` entries from the limit; False: there are not that many left."""
        if self._entries_left is None:
            return True
        self._entries_left -= count
        self.exhausted = self._entries_left < 0
        return not self.exhausted

    def _segment(self, block: int, index: int, raw: bytes, count: int) -> None:
        first = int.from_bytes(raw[:BAT_ENTRY_SIZE], "little")
        if first < State.FULLY_PRESENT and raw == raw[:BAT_ENTRY_SIZE] * count and first in _PLAIN_STATES:
            self.report.states[State(first).name] += count
            return
        if count > 1 and self._contiguous(raw, first, count):
            return
        if count > ENTRIES_SINGLY:
            half = count // 2
            self._segment(block, index, raw[: half * BAT_ENTRY_SIZE], half)
            if not self.exhausted:
                self._segment(block + half, index + half, raw[half * BAT_ENTRY_SIZE :], count - half)
            return
        if not self._spend(count):
            return
        for at in range(0, len(raw), BAT_ENTRY_SIZE):
            self._payload_entry(block, index, int.from_bytes(raw[at : at + BAT_ENTRY_SIZE], "little"))
            block += 1
            index += 1

    def _contiguous(self, raw: bytes, first: int, count: int) -> bool:
        """Take sound blocks that stand in the file in order, all at once."""
        size = self._geometry.block_size
        start = first - State.FULLY_PRESENT
        end = start + count * size
        if (
            start % MIB
            or start < self._placement.floor
            or end > min(self._placement.file_size, CHECK_OFFSET_MAX)
            or not is_progression(raw, size)
            or not self.owners.claim_blocks(start, count, size)
        ):
            return False
        self.report.states[State.FULLY_PRESENT.name] += count
        self._count_allocated(start, count)
        return True

    def _count_allocated(self, offset: int, count: int) -> None:
        end = offset + count * self._geometry.block_size
        self.report.allocated_blocks += count
        if self._previous_end not in (-1, offset):
            self.report.fragmented_blocks += 1
        self._previous_end = end
        self._end_offset = max(self._end_offset, end)

    def _payload_entry(self, block: int, index: int, entry: int) -> None:
        state = entry & BAT_STATE_MASK
        offset = entry & BAT_OFFSET_MASK
        self.report.states[_STATE_NAMES[state]] += 1
        if entry & BAT_RESERVED_MASK:
            self._record("B2", Severity.WARNING, f"reserved bits of block {block}'s entry are set", index)
        fault = payload_fault(self._geometry, self._placement, block, entry)
        if fault is not None:
            self._fault(fault, index)
        elif state >= State.FULLY_PRESENT:
            self._present_block(block, index, state, offset)
        elif offset and state in (State.NOT_PRESENT, State.ZERO):
            message = f"block {block} is {State(state).name} and names the place {offset:#x}"
            self._record("B12", Severity.WARNING, message, index)
        elif offset and len(self._anchors) < 2 * ANCHORS_MAX:
            self._anchors.append(offset)
            self._anchors.append(block)

    def _fault(self, fault: Fault, index: int, *, needed: bool = True) -> None:
        self._record(fault.code, Severity.ERROR, fault.message, index, needed=needed)

    def _present_block(self, block: int, index: int, state: int, offset: int) -> None:
        size = self._geometry.block_size
        if state == State.PARTIALLY_PRESENT:
            if self._geometry.differencing:
                self._chunk_is_partial = True
            else:
                message = f"block {block} is partially present, and the image has no parent"
                self._record("B11", Severity.ERROR, message, index)
        if offset + size > self._placement.file_size:
            message = f"block {block} reaches beyond the file's end, with bytes that the disk does not have"
            self._record("B7", Severity.WARNING, message, index)
        self._count_allocated(offset, 1)
        self._own(f"block {block}", offset, size, Owner.BLOCK_START, index)

    def _own(self, what: str, offset: int, size: int, owner: Owner, index: int) -> None:
        if offset + size > CHECK_OFFSET_MAX:
            message = f"{what} lies at {offset:#x}; overlaps beyond {CHECK_OFFSET_MAX:#x} are not looked for"
            self._record("B22", Severity.WARNING, message, index)
            return
        holder = self.owners.claim(offset, size, owner)
        if holder is Owner.FREE:
            return
        if Owner.BITMAP in (holder, owner):
            code, relation = "B17", "overlaps a sector bitmap or a block"
        elif self.owners.owner_within(offset, MIB) is Owner.BLOCK_START:
            code, relation = "B9", "has the same place as another block"
        else:
            code, relation = "B10", "overlaps another block"
        self._record(code, Severity.ERROR, f"{what} at {offset:#x} {relation}", index)

    def _bitmap_entry(self, chunk: int, index: int, raw: bytes) -> None:
        entry = int.from_bytes(raw, "little")
        partial, self._chunk_is_partial = self._chunk_is_partial, False
        if not self._geometry.differencing:
            if entry:
                message = f"the sector-bitmap entry of chunk {chunk} is not 0, and the image has no parent"
                self._record("B14", Severity.WARNING, message, index)
            return
        if entry & BAT_RESERVED_MASK:
            message = f"reserved bits of the sector-bitmap entry of chunk {chunk} are set"
            self._record("B2", Severity.WARNING, message, index)
        state, offset = entry & BAT_STATE_MASK, entry & BAT_OFFSET_MASK
        if state == 0 and not partial:
            if offset:
                message = f"the sector bitmap of chunk {chunk} is not present and names the place {offset:#x}"
                self._record("B12", Severity.WARNING, message, index)
            return
        fault = bitmap_fault(self._placement, chunk, entry)
        if fault is not None:
            self._fault(fault, index, needed=partial)
        elif state == BITMAP_PRESENT:
            what = f"the sector bitmap of chunk {chunk}"
            self._own(what, offset, SECTOR_BITMAP_SIZE, Owner.BITMAP, index)
            self._end_offset = max(self._end_offset, offset + SECTOR_BITMAP_SIZE)

    def _beyond(self, index: int, raw: bytes) -> None:
        """Judge entries that belong to no block of the disk."""
        for start in range(0, len(raw), PAGE_SIZE):
            page = raw[start : start + PAGE_SIZE]
            if page == bytes(len(page)):
                continue
            for at in range(0, len(page), BAT_ENTRY_SIZE):
                entry = int.from_bytes(page[at : at + BAT_ENTRY_SIZE], "little")
                if entry and not self._spend(1):
                    return
                if entry:
                    self._stray_entry(index + (start + at) // BAT_ENTRY_SIZE, entry)

    def _stray_entry(self, index: int, entry: int) -> None:
        offset, size = entry & BAT_OFFSET_MASK, self._geometry.block_size
        holds_space = (
            entry & BAT_STATE_MASK >= State.FULLY_PRESENT
            and offset + size <= CHECK_OFFSET_MAX
            and self._placement.fault("", offset, size, size) is None
            and self.owners.claim(offset, size, Owner.BLOCK_START) is Owner.FREE
        )
        message = f"entry {index} of the BAT is not 0, and the disk has no block for it"
        if holds_space:
            self.report.leaked_bytes += size
            self._end_offset = max(self._end_offset, offset + size)
        self._record("B20", Severity.LEAK if holds_space else Severity.WARNING, message, index)

    def _judge_anchor(self, offset: int, block: int) -> None:
        size = self._geometry.block_size
        if offset + size > min(self._placement.file_size, CHECK_OFFSET_MAX):
            return
        fault = self._placement.fault("", offset, size, 0)
        if fault is None and self.owners.claim(offset, size, Owner.ANCHOR) is Owner.FREE:
            self._end_offset = max(self._end_offset, offset + size)
            self.anchors_held.append(offset)
            return
        message = f"block {block} is unmapped and holds on to {offset:#x}, which something else owns"
        self._record("B13", Severity.WARNING, message, self._geometry.payload_index(block))


_PLAIN_STATES = frozenset((State.NOT_PRESENT, State.UNDEFINED, State.ZERO, State.UNMAPPED))
_STATE_NAMES = tuple(
    State(state).name if state in frozenset(State) else f"RESERVED_{state}" for state in range(8)
)
