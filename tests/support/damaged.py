"""Damaged VHDX files, one for each finding, and what a repair of each must come to.

Owns: the damage, the words for what is expected of its repair, and how the disk
of a damaged file is looked at: block by block, errors included.
"""

import struct
from dataclasses import dataclass, replace

from tests.support.crash import images, options_of
from tests.support.small_vhdx import (
    BAT,
    BAT_AT,
    FULLY,
    LOCATOR,
    LOG_AT,
    LOG_GUID,
    METADATA,
    METADATA_AT,
    MIB,
    OTHER,
    PARTLY,
    PAYLOAD_AT,
    PHYSICAL,
    Small,
    header,
    locator,
    log_entry,
    metadata,
    region_entry,
    region_table,
)
from vblk.drivers.vhdx_repair import Repair, repair_image
from vblk.errors import BlockError
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.testing import Content, Recorder

PARENT = locator({"parent_linkage": "{00112233-4455-6677-8899-aabbccddeeff}", "relative_path": ".\\p.vhdx"})
KIB4 = 4096
PIECE = 16 * 1024
BITMAP = 4096
"""The BAT index of the first chunk's sector bitmap, with blocks of 1 MiB."""


def at(place: int, state: int = FULLY) -> int:
    """Return an entry that names the MiB number `place` behind the start of the payload."""
    return (PAYLOAD_AT + place * MIB) | state


def stamps(places: int = 4) -> dict[int, bytes]:
    """Return pieces that say where they are, at both ends of each MiB of payload."""
    return {
        PAYLOAD_AT + place * MIB + offset: bytes((0x40 + place, 1 + (offset > 0))) * (KIB4 // 2)
        for place in range(places)
        for offset in (0, MIB - KIB4)
    }


@dataclass(frozen=True)
class Damage:
    """A damaged file.

    After the repair the findings `fixed` are gone and those of `left` are still
    there, no others; `lost` blocks read as zeros, all others as before.
    """

    small: Small
    fixed: tuple[str, ...]
    left: tuple[str, ...] = ()
    lost: tuple[int, ...] = ()


def damage(
    *fixed: str,
    left: tuple[str, ...] = (),
    lost: tuple[int, ...] = (),
    pieces: dict[int, bytes] | None = None,
    **own: object,
) -> Damage:
    """Return a file of four blocks with stamps; by default the first two are present."""
    small = Small(entries={0: at(0), 1: at(1)}, pieces=stamps() | (pieces or {}))
    return Damage(replace(small, **own), fixed, left, lost)  # type: ignore[arg-type]


def child(
    *fixed: str,
    entries: dict[int, int],
    left: tuple[str, ...] = (),
    lost: tuple[int, ...] = (),
    pieces: dict[int, bytes] | None = None,
) -> Damage:
    """Return a file that has a parent, which is not there."""
    made = damage(*fixed, left=left, lost=lost, pieces=pieces, entries=entries)
    return replace(made, small=replace(made.small, bits=2, extra_items={LOCATOR: PARENT}))


def broken(data: bytes) -> bytes:
    """Return a structure whose checksum does not fit any more."""
    return data[:-1] + b"\x01"


_SWAPPED = region_table(region_entry(METADATA, METADATA_AT), region_entry(BAT, BAT_AT))
_ITEMS = Small().items()
_STRAY = _ITEMS | {LOCATOR: PARENT, OTHER: b"kept"}
_DIRTY = (header(1, log_guid=LOG_GUID), header(2, log_guid=LOG_GUID))
_REPLAYED = log_entry(
    1,
    [(BAT_AT, struct.pack("<4Q", at(0), at(1), at(2), 0).ljust(KIB4, b"\0"))],
    flushed=8 * MIB,
    last=9 * MIB,
)
_BITS = {7 * MIB: (b"\xff" * 4).ljust(256, b"\0") + b"\xff" * 4}

DAMAGES = {
    "sound": damage(),
    "H3": damage("H3", headers=(broken(header(1)), header(2))),
    "H4": damage("H4", headers=(header(1), broken(header(2)))),
    "H6": damage("H6", headers=(header(1), header(1))),
    "H9": damage("H9", headers=(header(1, log_version=1), header(2, log_version=1))),
    "H12": damage("H12", headers=(header(1), header(2, log_length=0))),
    "H12-and-blocks": damage(
        "H12",
        "B6",
        "B9",
        headers=(header(1), header(2, log_length=0)),
        lost=(),
        length=7 * MIB + KIB4,
        entries={0: at(0), 1: at(0), 2: at(3)},
    ),
    "H12-and-more": damage(
        left=("H12", "B5"), headers=(header(1), header(2, log_length=0)), entries={0: at(40)}
    ),
    "H15": damage("H15", headers=(header(1), header(2, log_offset=100 * MIB))),
    "H18": damage(left=("H18", "B12"), headers=(header(1), header((1 << 64) - 1)), entries={0: at(0, 0)}),
    "L29": damage("L29", headers=_DIRTY, pieces={LOG_AT: _REPLAYED}),
    "L29-and-header": damage("L29", "H3", headers=(broken(_DIRTY[0]), _DIRTY[1]), pieces={LOG_AT: _REPLAYED}),
    "L2": damage("L2", headers=_DIRTY),
    "L2-and-more": damage(left=("L2", "B9"), headers=_DIRTY, entries={0: at(0), 1: at(0)}),
    "T1": damage("T1", pieces={0x30000: bytes(65536)}),
    "T2": damage("T2", pieces={0x40000: broken(_SWAPPED)}),
    "T4": damage("T4", pieces={0x40000: _SWAPPED}),
    "T4-first": damage("T4", pieces={0x30000: region_table(region_entry(BAT, BAT_AT))}),
    "T8": damage(
        "B12",
        left=("T8", "B9"),
        entries={0: at(0), 1: at(0), 2: at(2, 0)},
        regions=(*Small().regions, region_entry(OTHER, 20 * MIB, flags=0)),
    ),
    "T17": damage("T17", regions=(region_entry(BAT, BAT_AT, flags=3), region_entry(METADATA, METADATA_AT))),
    "T17-metadata": damage("T17", pieces={METADATA_AT: metadata(_ITEMS, flags={PHYSICAL: 14})}),
    "M3": damage(
        "M3", pieces={METADATA_AT: metadata(dict(list(_ITEMS.items())[:2] + list(_ITEMS.items())[3:4]))}
    ),
    "M14": damage("M14", bits=0xF0),
    "M23": damage("M23", physical=520),
    "M26": damage(
        "M26", pieces={METADATA_AT: metadata(_ITEMS | {LOCATOR: PARENT, OTHER: b"kept"}, flags={OTHER: 0})}
    ),
    "B1": damage(left=("B1",), entries={0: at(0), 1: at(1, 4)}),
    "B1-nowhere": damage("B1", entries={0: at(0), 1: 5, 2: at(40, 4)}, lost=(1, 2)),
    "B2": damage("B2", entries={0: at(0) | 0xFFFF8, 1: 2 | 8}),
    "B3": damage("B3", entries={0: at(0), 1: FULLY}, lost=(1,)),
    "B4": damage("B4", entries={0: METADATA_AT | FULLY, 1: at(1)}, lost=(0,)),
    "B4-in-part": damage(
        left=("B4",),
        block_size=2 * MIB,
        entries={0: BAT_AT | FULLY},
        size=4 * MIB,
    ),
    "B5": damage("B5", entries={0: at(40), 1: at(1), 2: at(4)}, lost=(0, 2)),
    "B6": damage("B6", entries={0: at(0), 1: at(3)}, length=7 * MIB + KIB4),
    "B6-then-B11": damage("B6", entries={0: at(0), 1: at(3, PARTLY)}, length=7 * MIB + KIB4),
    "B5-and-B6": damage("B5", "B6", entries={0: at(40), 1: at(3)}, length=7 * MIB + KIB4, lost=(0,)),
    "B7": damage("B7", size=MIB + 512, entries={1: at(3)}, length=7 * MIB + 512),
    "B8": damage("B8", entries={0: 1 << 63 | FULLY}, lost=(0,)),
    "B9": damage("B9", entries={0: at(0), 1: at(0), 2: at(2), 3: at(0)}),
    "B10": damage("B10", block_size=2 * MIB, size=8 * MIB, entries={0: at(0), 1: at(1), 3: at(2)}),
    "B11": damage("B11", entries={0: at(0, PARTLY)}),
    "B12": damage("B12", entries={0: at(0, 0), 1: at(1, 2)}),
    "B13": damage("B13", entries={0: at(0, 3), 1: at(0), 2: BAT_AT | 1}),
    "B14": damage("B14", size=4097 * MIB, entries={0: at(0), BITMAP: at(1)}),
    "B20": damage("B20", entries={0: at(0), 4: at(1), 5: 2}),
    "B15": child(left=("B15",), entries={0: at(0, PARTLY), 1: at(1)}),
    "B15-nowhere": child(left=("B3",), entries={0: at(0, PARTLY), 1: at(1), BITMAP: FULLY}),
    "B15-beyond": child(left=("B5",), entries={0: at(0, PARTLY), 1: at(1), BITMAP: at(40)}),
    "B16": child(left=("B16",), entries={0: at(0, PARTLY), 1: at(1), BITMAP: at(3, 3)}),
    "B16-unneeded": child("B16", entries={0: at(0), BITMAP: at(3, 3)}),
    "B12-bitmap": child("B12", entries={0: at(0), BITMAP: at(3, 0)}),
    "B5-bitmap-unneeded": child("B5", entries={0: at(0), BITMAP: at(40)}),
    "B3-child": child("B3", entries={0: at(0), 1: FULLY}, lost=(1,)),
    "B17": child("B17", entries={0: at(0, PARTLY), 1: at(1, PARTLY), 2: at(3), BITMAP: at(3)}, pieces=_BITS),
    "B17-and-B5": child(
        "B17", "B5", entries={0: at(40), 1: at(1, PARTLY), 2: at(3), BITMAP: at(3)}, pieces=_BITS, lost=(0,)
    ),
    "B20-child": child("B20", entries={0: at(0), 7: at(1), 9: at(30, 1)}),
    "many": damage(
        "H3",
        "T2",
        "B2",
        "B3",
        "B9",
        "B20",
        headers=(broken(header(1)), header(2)),
        lost=(2,),
        pieces={0x40000: bytes(65536)},
        entries={0: at(0) | 8, 1: at(0), 2: FULLY, 4: at(2)},
    ),
}
"""Findings by their codes, some with others beside them."""


def content_of(small: Small) -> Content:
    """Return the file, ready to be put onto a recording leaf."""
    file = small.build()
    content = Content(file.length)
    for offset, piece in file.pieces:
        if offset < file.length:
            content.write(offset, piece[: file.length - offset])
    return content


async def look(content: Content) -> dict[int, bytes | str]:
    """Return what the disk holds at both ends of its first MiBs, by offset, or why it cannot be read.

    What the parent would have to tell is an error too.
    """
    leaf = images({"image": content}).leaves["image"]
    leaf.read_only = True
    async with Graph() as graph:
        graph.add(leaf)
        handle = await open_image(graph, options_of(["image"]), backing=False)
        found: dict[int, bytes | str] = {}
        for start in range(0, min(handle.size, 8 * MIB), MIB):
            for offset in (start, min(start + MIB, handle.size) - min(PIECE, handle.size - start)):
                try:
                    found[offset] = await handle.read(offset, min(PIECE, handle.size - offset))
                except BlockError as error:
                    found[offset] = type(error).__name__
        return found


async def repair(content: Content, *, leaks_only: bool = False) -> tuple[Repair, Content]:
    """Repair a copy of the file; return what was done, and the copy."""
    recorder = Recorder(recording=False)
    leaf = recorder.leaf("image", content)
    found = await repair_image(leaf, "damaged.vhdx", leaks_only=leaks_only)
    return found, leaf.content
