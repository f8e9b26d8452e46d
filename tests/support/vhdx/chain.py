"""Differencing chains: children that hold only what was written to them.

Owns: a folder with a chain of files and, level by level, what a guest sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.model import Model, pattern
from tests.support.vhdx.records import encode_locator, linkage

Writes = Sequence[tuple[int, int]]

_POISON = 0xDEADDEADDEADDEAD


def blocks_of_writes(vhdx: Vhdx, writes: Writes, tag: int, *, partial: bool) -> dict[int, Block]:
    """Return the blocks that hold `writes`, (offset, length) in whole sectors.

    With `partial` sectors that were not written are marked so, and the file
    holds bytes there that nobody may ever see.
    """
    data: dict[int, bytearray] = {}
    bits: dict[int, int] = {}
    for offset, length in writes:
        end = min(offset + length, vhdx.size)
        while offset < end:
            number, within = divmod(offset, vhdx.block_size)
            count = min(vhdx.block_size - within, end - offset)
            stored = data.setdefault(number, bytearray())
            if len(stored) < within + count:
                fill = pattern(_POISON, len(stored), within + count - len(stored))
                stored += fill if partial else bytes(len(fill))
            stored[within : within + count] = pattern(tag, offset, count)
            first, sectors = within // vhdx.sector_size, count // vhdx.sector_size
            bits[number] = bits.get(number, 0) | ((1 << sectors) - 1) << first
            offset += count
    blocks: dict[int, Block] = {}
    for number, stored in data.items():
        whole = bits[number] == (1 << vhdx.block_size // vhdx.sector_size) - 1
        if whole or not partial:
            blocks[number] = Block(State.FULLY_PRESENT, bytes(stored))
        else:
            packed = bits[number].to_bytes(vhdx.bits_length, "little")
            blocks[number] = Block(State.PARTIALLY_PRESENT, bytes(stored), packed)
    return blocks


@dataclass
class Level:
    """One file of a chain and what a guest sees through it."""

    path: Path
    vhdx: Vhdx
    model: Model


@dataclass
class Chain:
    """A chain in one folder; `levels[0]` is the base."""

    folder: Path
    levels: list[Level] = field(default_factory=list[Level])

    @property
    def top(self) -> Level:
        """The newest level."""
        return self.levels[-1]

    def base(self, writes: Writes = (), *, name: str = "base.vhdx", **own: Any) -> Level:
        """Start the chain with a dynamic disk that holds `writes`."""
        vhdx = Vhdx(**own)
        vhdx.blocks.update(blocks_of_writes(vhdx, writes, 1, partial=False))
        return self._keep(Level(self.folder / name, vhdx, vhdx.model()))

    def child(
        self,
        writes: Writes = (),
        *,
        name: str | None = None,
        states: dict[int, int] | None = None,
        pairs: Sequence[tuple[str | bytes, str | bytes]] | None = None,
        **own: Any,
    ) -> Level:
        """Lay a child over the top; `states` sets whole blocks, `pairs` replaces the locator."""
        parent = self.top
        vhdx = self.describe_child(pairs, **own)
        for number, state in (states or {}).items():
            vhdx.blocks[number] = Block(state)
        vhdx.blocks.update(blocks_of_writes(vhdx, writes, len(self.levels) + 1, partial=True))
        path = self.folder / (name or f"child{len(self.levels)}.vhdx")
        return self._keep(Level(path, vhdx, vhdx.see(parent.model.copy(vhdx.size))))

    def describe_child(
        self, pairs: Sequence[tuple[str | bytes, str | bytes]] | None = None, **own: Any
    ) -> Vhdx:
        """Return an empty child of the top, like it in all that `own` does not say."""
        parent = self.top
        if pairs is None:
            pairs = self.locator_pairs(parent)
        like = Vhdx(
            size=parent.vhdx.size,
            block_size=parent.vhdx.block_size,
            sector_size=parent.vhdx.sector_size,
            disk_id=parent.vhdx.disk_id,
            locator=encode_locator(pairs),
        )
        return replace(like, **own)

    @staticmethod
    def locator_pairs(parent: Level) -> list[tuple[str | bytes, str | bytes]]:
        """Return the usual keys of a locator that names `parent` in the same folder."""
        return [
            ("parent_linkage", linkage(parent.vhdx.data_write)),
            ("relative_path", ".\\" + parent.path.name),
            ("absolute_win32_path", "\\\\?\\D:\\disks\\" + parent.path.name),
        ]

    def _keep(self, level: Level) -> Level:
        level.vhdx.build(level.path)
        self.levels.append(level)
        return level
