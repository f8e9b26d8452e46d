"""What an export's metadata contexts say of a range.

Owns: holes, depths and dirt as numbers of the protocol, and the bound on how much of
a range one answer covers. A client that is told of less than it asked asks again.

Source: proto.md, "`base:allocation` metadata context"; QEMU's documentation,
"QEMU NBD protocol".
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from vblk.exports.nbd.export import NbdExport
from vblk.extent import Kind
from vblk.graph.node import Span
from vblk.units import MIB, align_down, align_up
from vblk.wire.nbd.meta_contexts import DEPTH_CONTEXT
from vblk.wire.nbd.numbers import ALLOCATION_CONTEXT, StatusFlag

EXTENTS_MAX: Final = 16384
"""The most extents of one context in an answer."""

FIRST_PIECE: Final = 64 * MIB
"""How much is looked at first, in bytes; four times as much each time it was not enough."""

Extents = list[tuple[int, int]]


async def statuses(
    export: NbdExport, contexts: Sequence[int], offset: int, length: int, *, only_first: bool
) -> list[tuple[int, Extents]]:
    """Return, for each context, its (length, status) from the offset on.

    With `only_first` one extent each, as long as it is found without looking far.

    Raises:
        BlockError: The tables of the range cannot be read.
    """
    offer = export.offer()
    names, unit = offer.contexts, offer.minimum
    spoken: dict[int, Callable[[Span], int]] = {}
    for context in contexts:
        if names[context] == ALLOCATION_CONTEXT:
            spoken[context] = _allocation
        elif names[context] == DEPTH_CONTEXT:
            spoken[context] = _depth
    found: dict[int, Extents] = {context: [] for context in contexts}
    most = 1 if only_first else EXTENTS_MAX
    if spoken:
        await _walk(export, spoken, found, offset, length, most)
    first_bitmap = len(names) - len(export.bitmaps)
    for context in contexts:
        if context >= first_bitmap:
            bitmap = export.bitmaps[context - first_bitmap].bitmap
            for _, count, dirty in bitmap.ranges(offset, length):
                if not _add(found[context], count, int(dirty), most):
                    break
    if unit > 1:
        found = {context: _in_units(extents, unit, length)[:most] for context, extents in found.items()}
    return [(context, found[context]) for context in contexts]


def _in_units(extents: Extents, unit: int, length: int) -> Extents:
    """Return extents that end at multiples of a unit; one in which several meet is called data.

    `length` is that of the range that was asked about.
    """
    aligned: Extents = []
    end = told = 0
    for count, status in extents:
        first = min(align_up(end, unit), length)
        end += count
        last = align_down(end, unit)
        if told < first:
            told += _told(aligned, first - told, StatusFlag.NONE)
        if told < last:
            told += _told(aligned, last - told, status)
    if told < end:
        _told(aligned, min(align_up(end, unit), length) - told, StatusFlag.NONE)
    return aligned


def _told(extents: Extents, length: int, status: int) -> int:
    _add(extents, length, status, len(extents) + 1)
    return length


async def _walk(
    export: NbdExport,
    spoken: dict[int, Callable[[Span], int]],
    found: dict[int, Extents],
    offset: int,
    length: int,
    most: int,
) -> None:
    """Add what spans say to the contexts that are about them, until each has enough."""
    piece = FIRST_PIECE
    end = offset + length
    going = dict(spoken)
    while offset < end and going:
        count = min(piece, end - offset)
        spans = await export.handle.allocation(offset, count)
        for context, say in list(going.items()):
            if not _add_all(found[context], ((span.length, say(span)) for span in spans), most):
                del going[context]
        offset += count
        piece *= 4


def _add_all(extents: Extents, more: Iterable[tuple[int, int]], most: int) -> bool:
    return all(_add(extents, length, status, most) for length, status in more)


def _add(extents: Extents, length: int, status: int, most: int) -> bool:
    """Add an extent, joined to the last one if that says the same; return False if it was one too many."""
    if extents and extents[-1][1] == status:
        extents[-1] = (extents[-1][0] + length, status)
        return True
    if len(extents) == most:
        return False
    extents.append((length, status))
    return True


def _allocation(span: Span) -> int:
    return StatusFlag.HOLE | StatusFlag.ZERO if span.kind is Kind.ZERO else StatusFlag.NONE


def _depth(span: Span) -> int:
    """Count images from the top, which is 1; 0 says that none has the range."""
    return span.depth + 1 if span.present else 0
