"""What is to be done for a change of a VHDX disk, before any of it is done.

Owns: what `vblk.formats.plan` has not: sectors of partially present blocks, holes
and barriers. The ordering rule for the shell is there; `holes` are hints, and
come last of the file's bytes.
"""

from dataclasses import dataclass, field

from vblk.formats import plan
from vblk.formats.edits import Range


@dataclass(slots=True)
class SectorRun:
    """Sectors of a partially present block that become this file's.

    Bits count from the start of the sector bitmap at `bitmap_offset`. With
    `fresh_block` the block was not partially present before: all of its bits
    are cleared first, for they may say anything.
    """

    block: int
    bitmap_offset: int
    first_bit: int
    count: int
    fresh_block: bool


@dataclass(slots=True, eq=False)
class Plan(plan.Plan):
    """One change; see `vblk.formats.plan.Plan`.

    Content is copied because a sector is only written in part. `holes` are
    ranges whose bytes are of no more use. With `barrier` all of the file's bytes
    must be durable before the metadata is. `entries` are BAT entries by index,
    `released` what they no longer name.
    """

    holes: list[Range] = field(default_factory=lambda: list[Range]())
    barrier: bool = False
    runs: list[SectorRun] = field(default_factory=lambda: list[SectorRun]())

    @property
    def changes_nothing(self) -> bool:
        """Whether there is nothing to do at all."""
        return not (self.payload or self.zeros or self.holes or self.pages)


@dataclass(frozen=True, slots=True)
class NeedsBitmap(plan.Need):
    """The sector bitmap of a chunk must be made first."""

    chunk: int
