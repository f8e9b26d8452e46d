"""What is to be done for a change of the disk, before any of it is done.

Owns: the vocabulary between the pure planner (`writing`) and the shell that
carries plans out.

Ordering rule for the shell:
1. take the gate of the plan's blocks, exclusive if the plan says so,
2. `copies` and `zeros`, then the payload, in any order where they do not overlap
   (a copy may cover bytes that the payload then replaces: copies come first),
3. `commit`, which edits metadata in memory, or `abort`, which gives space back.
`holes` are hints, and come last of the file's bytes.
"""

from dataclasses import dataclass, field

from vblk.formats.vhdx.edits import Range
from vblk.formats.vhdx.space import Place


@dataclass(slots=True)
class Piece:
    """Guest bytes and the file offset where they belong."""

    guest_offset: int
    length: int
    file_offset: int


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


def _pieces() -> list[Piece]:
    return []


def _ranges() -> list[Range]:
    return []


@dataclass(slots=True, eq=False)
class Plan:
    """One change, and the guard of what was taken for it. Exactly one of commit and abort ends it.

    `payload` is where the caller's bytes go. `copies` is where the present
    content of guest ranges goes, because a sector is only written in part.
    `zeros` are ranges to be zeroed with their space kept, `holes` ranges whose
    bytes are of no more use. With `barrier` all of these must be durable before
    the metadata is. `entries` are BAT entries by index, `released` what they no
    longer name.
    """

    payload: list[Piece] = field(default_factory=_pieces)
    copies: list[Piece] = field(default_factory=_pieces)
    zeros: list[Range] = field(default_factory=_ranges)
    holes: list[Range] = field(default_factory=_ranges)
    exclusive: bool = False
    barrier: bool = False
    places: list[Place] = field(default_factory=lambda: list[Place]())
    entries: dict[int, int] = field(default_factory=lambda: dict[int, int]())
    runs: list[SectorRun] = field(default_factory=lambda: list[SectorRun]())
    released: list[Range] = field(default_factory=_ranges)
    pages: set[int] = field(default_factory=lambda: set[int]())

    @property
    def changes_nothing(self) -> bool:
        """Whether there is nothing to do at all."""
        return not (self.payload or self.zeros or self.holes or self.pages)

    def add_payload(self, guest_offset: int, length: int, file_offset: int) -> None:
        """Add a piece, joined to the one before where it continues it."""
        if self.payload:
            last = self.payload[-1]
            if (
                last.file_offset + last.length == file_offset
                and last.guest_offset + last.length == guest_offset
            ):
                last.length += length
                return
        self.payload.append(Piece(guest_offset, length, file_offset))


@dataclass(frozen=True, slots=True)
class NeedsRoom:
    """The file, `file_size` bytes long, must be extended so that a range of `length` bytes can be taken."""

    length: int
    file_size: int


@dataclass(frozen=True, slots=True)
class NeedsBitmap:
    """The sector bitmap of a chunk must be made first."""

    chunk: int
