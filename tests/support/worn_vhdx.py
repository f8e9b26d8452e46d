"""VHDX images that have been used long and by many: holes, zeros, anchors, structures anywhere.

Owns: drawing such an image, with or without a parent, and what a guest sees of
it. Nothing of the product is used here.
"""

from dataclasses import dataclass, replace
from random import Random

from tests.support.vhdx.image import Block, Parts, State, Vhdx
from tests.support.vhdx.model import Model, pattern
from tests.support.vhdx.records import MIB, encode_locator, linkage

LITTER = 0x1177E5
KINDS = {
    "absent": 2,
    "zero": 1,
    "unmapped": 1,
    "anchored": 2,
    "left": 4,
    "data": 5,
    "zeros": 3,
}
CHILD_KINDS = {"some": 4, "none": 2, "all": 2, "all zeros": 1}


@dataclass(frozen=True, slots=True)
class Worn:
    """The files, the base first, and the disk that the last of them shows."""

    files: list[Parts]
    model: Model

    def contents(self) -> list[bytes]:
        """Return the files' bytes."""
        contents: list[bytes] = []
        for parts in self.files:
            content = bytearray(parts.length)
            for at, data in parts.pieces():
                content[at : at + len(data)] = data[: max(0, parts.length - at)]
            contents.append(bytes(content))
        return contents


def worn(
    lot: Random, *, size: int = 14 * MIB, block_size: int = MIB, sector_size: int = 512, parent: bool = False
) -> Worn:
    """Draw an image."""
    like = Vhdx(size=size, block_size=block_size, sector_size=sector_size)
    if not parent:
        parts, model = _draw(lot, like, Model(0), 1)
        return Worn([parts], model)
    base = replace(like, block_size=MIB, blocks={})
    below, model = _draw(lot, base, Model(0), 1)
    pairs = [("parent_linkage", linkage(base.data_write)), ("relative_path", ".\\base.vhdx")]
    top = replace(like, locator=encode_locator(pairs), disk_id=base.disk_id, blocks={})
    above, model = _draw(lot, top, model, 2)
    return Worn([below, above], model)


def _draw(lot: Random, vhdx: Vhdx, below: Model, tag: int) -> tuple[Parts, Model]:
    vhdx.gap = lot.choice((0, 0, MIB))
    order = ["log", "metadata", "bat", "payload"]
    if lot.random() < 0.5:
        lot.shuffle(order)
    vhdx.order = tuple(order)
    vhdx.placing = tuple(lot.sample(range(vhdx.block_count), vhdx.block_count))
    kinds = {**KINDS, **(CHILD_KINDS if vhdx.locator is not None else {})}
    drawn = lot.choices(list(kinds), list(kinds.values()), k=vhdx.block_count)
    for number, kind in enumerate(drawn):
        block = _block(lot, vhdx, number, kind, tag)
        if block is not None:
            vhdx.blocks[number] = block
    parts = vhdx.assemble()
    for number, kind in enumerate(drawn):
        if kind == "left":
            parts.set_entry(number, State.ZERO)
            vhdx.blocks[number] = Block(State.ZERO)
        elif kind == "anchored":
            place = parts.append(vhdx.block_size)
            parts.set_entry(number, lot.choice((State.UNMAPPED, State.UNDEFINED)), place)
            parts.patches.append((place, pattern(LITTER, 0, 4096)))
            vhdx.blocks[number] = Block(State.UNMAPPED)
    whole_blocks = below.copy(vhdx.block_count * vhdx.block_size)
    return parts, vhdx.see(whole_blocks).copy(vhdx.size)


def _block(lot: Random, vhdx: Vhdx, number: int, kind: str, tag: int) -> Block | None:
    start = number * vhdx.block_size
    sectors = vhdx.block_size // vhdx.sector_size
    whole = (1 << sectors) - 1
    data = pattern(tag, start, lot.choice((4096, 20480)))
    if lot.random() < 0.3:
        data = bytes(vhdx.block_size - 8192) + pattern(tag, start + vhdx.block_size - 8192, 4096)
    if kind == "left":
        return Block(State.FULLY_PRESENT, pattern(LITTER, start, 8192))
    if kind in ("data", "zeros"):
        bits = lot.choice((None, bytes(vhdx.bits_length))) if vhdx.locator is not None else None
        return Block(State.FULLY_PRESENT, data if kind == "data" else b"", bits)
    if kind in ("some", "none", "all", "all zeros"):
        held = {"some": 0b110110 << lot.randrange(8), "none": 0}.get(kind, whole)
        stored = b"" if kind == "all zeros" else data
        return Block(State.PARTIALLY_PRESENT, stored, held.to_bytes(vhdx.bits_length, "little"))
    if kind == "absent":
        return None
    return Block({"zero": State.ZERO, "unmapped": State.UNMAPPED, "anchored": State.UNMAPPED}[kind])
