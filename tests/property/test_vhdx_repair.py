"""Whatever the block table holds: a repair ends, keeps all that read well, and leaves nothing for another.

What it leaves are findings about data that may still be there, and what these stand in the way of.
"""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.damaged import BITMAP, PARENT, PIECE, content_of, look, repair, stamps
from tests.support.small_vhdx import LOCATOR, LOG_GUID, MIB, Small, header

BLOCKS = 6
ZEROS = bytes(PIECE)
MAY_BE_LEFT = {"B1", "B3", "B4", "B5", "B6", "B8", "B15", "B16"}
"""What is left by its own: a block of which data may be there, a sector bitmap that blocks need."""


@st.composite
def entries(draw: st.DrawFn) -> int:
    """Return an entry of the table; places are where structures, blocks or nothing is."""
    state = draw(st.sampled_from((0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 7)))
    place = draw(st.sampled_from((0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 40, 1 << 43)))
    reserved = draw(st.sampled_from((0, 0, 0, 0, 1, 0x1FFFF)))
    return place * MIB | state | reserved * 8


HEADERS = {
    "sound": (header(1), header(2)),
    "twins": (header(1), header(1)),
    "damaged": (header(1)[:-1] + b"\x01", header(2)),
    "no log": (header(1), header(2, log_length=0)),
    "log beyond": (header(1), header(2, log_offset=70 * MIB)),
    "log lost": (header(1), header(2, log_guid=LOG_GUID)),
}


@given(
    table=st.dictionaries(st.sampled_from((*range(BLOCKS + 2), BITMAP)), entries()),
    headers=st.sampled_from(tuple(HEADERS)),
    tail=st.sampled_from((0, 0, -MIB, 4096 - MIB, 512, MIB)),
    child=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_a_repair_keeps_what_read_well_and_leaves_nothing_for_another(
    table: dict[int, int], headers: str, tail: int, child: bool
) -> None:
    small = Small(
        size=BLOCKS * MIB - 512,
        entries=table,
        headers=HEADERS[headers],
        length=8 * MIB + tail,
        bits=2 if child else 0,
        extra_items={LOCATOR: PARENT} if child else {},
        pieces=stamps(),
    )

    async def main() -> None:
        content = content_of(small)
        before = await look(content)
        repaired, after = await repair(content)
        left = set(repaired.after.counts)
        assert not left or left & (MAY_BE_LEFT | {"L2"}), left
        assert {act.code for act in repaired.left} == left
        read = await look(after)
        for offset, old in before.items():
            if isinstance(old, bytes):
                assert read[offset] == old
            elif repaired.lost_bytes == 0:
                assert isinstance(read[offset], str)
        again, unchanged = await repair(after)
        assert (again.done, unchanged.length, unchanged.pages) == ((), after.length, after.pages)

    asyncio.run(main())
