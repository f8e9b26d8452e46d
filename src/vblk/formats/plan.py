"""What is to be done for a change of a disk, before any of it is done.

Owns: the vocabulary between the pure planners of formats and the shells that
carry plans out.

Ordering rule for the shell:
1. take the gate of the plan's range, exclusive if the plan says so,
2. `copies` and `zeros`, then the payload, in any order where they do not overlap
   (a copy may cover bytes that the payload then replaces: copies come first),
3. `commit`, which edits metadata in memory, or `abort`, which gives space back.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from vblk.formats.edits import Range
from vblk.formats.space import Place


@dataclass(slots=True)
class Piece:
    """Guest bytes and the file offset where they belong."""

    guest_offset: int
    length: int
    file_offset: int


@dataclass(slots=True, eq=False)
class Plan(ABC):
    """One change, and the guard of what was taken for it. Exactly one of commit and abort ends it.

    `payload` is where the caller's bytes go, and `stale` those parts of it that hold others
    than the disk shows. `copies` is where the present
    content of guest ranges goes. `zeros` are ranges to be zeroed with their
    space kept. `places` is the space that was taken. `entries` are table
    entries, `released` is what nothing of this names any more. `pages` are
    pinned until the end.
    """

    payload: list[Piece] = field(default_factory=lambda: list[Piece]())
    stale: list[Range] = field(default_factory=lambda: list[Range]())
    copies: list[Piece] = field(default_factory=lambda: list[Piece]())
    zeros: list[Range] = field(default_factory=lambda: list[Range]())
    exclusive: bool = False
    places: list[Place] = field(default_factory=lambda: list[Place]())
    entries: dict[int, int] = field(default_factory=lambda: dict[int, int]())
    released: list[Range] = field(default_factory=lambda: list[Range]())
    pages: set[int] = field(default_factory=lambda: set[int]())

    @property
    @abstractmethod
    def changes_nothing(self) -> bool:
        """Whether there is nothing to do at all."""

    def add_payload(
        self, guest_offset: int, length: int, file_offset: int, *, is_stale: bool = False
    ) -> None:
        """Add a piece, joined to the one before where it continues it."""
        if is_stale:
            self.stale.append((file_offset, length))
        if self.payload:
            last = self.payload[-1]
            if (
                last.file_offset + last.length == file_offset
                and last.guest_offset + last.length == guest_offset
            ):
                last.length += length
                return
        self.payload.append(Piece(guest_offset, length, file_offset))


class Need:
    """What must be made before there can be a plan."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NeedsRoom(Need):
    """The file, `file_size` bytes long, must be extended so that a range of `length` bytes can be taken.

    `wish` is what the plan may take in all: it is not asked for again and again.
    """

    length: int
    file_size: int
    wish: int = 0
