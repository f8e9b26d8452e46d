"""Where a file has data, and where holes, asked by seeking.

Owns: the use of SEEK_DATA and SEEK_HOLE, whoever carries them out, and the spans of a
leaf that follow. What is past the end of a file is a hole.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Final

from vblk.extent import Kind
from vblk.graph.node import Leaf, Span

RUNS_MAX: Final = 4096
"""The most holes and runs of data that one call looks for."""

Runs = list[tuple[bool, int]]
"""(Is data, end) of runs, gapless from an offset on."""


def data_runs(seek: Callable[[int, int], int], offset: int, end: int) -> Runs:
    """Return the runs from `offset` on, up to `end` or fewer; `seek` gets an offset and a whence.

    Raises:
        OSError: As `seek`, unless that there is nothing more.
    """

    def find(start: int, whence: int) -> int:
        try:
            return seek(start, whence)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return end

    found: Runs = []
    while offset < end and len(found) < RUNS_MAX:
        data = find(offset, os.SEEK_DATA)
        if data > offset:
            found.append((False, min(data, end)))
        if data < end:
            hole = find(data, os.SEEK_HOLE)
            if hole <= data:
                hole = end  # the file changes under us; say the safe thing
            found.append((True, min(hole, end)))
        offset = found[-1][1]
    return found


async def spans_of(
    leaf: Leaf, offset: int, length: int, look: Callable[[int, int], Awaitable[Runs]]
) -> list[Span]:
    """Return what a range of a leaf is; `look` tells the runs from an offset on, up to an end or fewer."""
    spans: list[Span] = []
    end = offset + length
    inside = min(end, max(offset, leaf.size))
    while offset < inside:
        for is_data, run_end in await look(offset, inside):
            kind = Kind.DATA if is_data else Kind.ZERO
            spans.append(Span(kind, offset, run_end - offset, leaf, offset))
            offset = run_end
    if offset < end:
        spans.append(Span(Kind.ZERO, offset, end - offset, leaf, offset))
    return spans
