"""What is to be done for a change of a qcow2 disk, before any of it is done.

Owns: what `vblk.formats.plan` has not: tables, and space that counts itself. The
ordering rule for the shell is there.
"""

from dataclasses import dataclass, field

from vblk.formats import plan
from vblk.formats.space import Place


@dataclass(slots=True, eq=False)
class Plan(plan.Plan):
    """One change; see `vblk.formats.plan.Plan`.

    `entries` are by file offset. `counted` is space taken that is a refcount
    block, by its index, and counts itself, `tables` whole new pages of tables.
    `references` says of clusters that were taken how many there are, where not one.
    """

    counted: dict[int, Place] = field(default_factory=lambda: dict[int, Place]())
    tables: dict[int, bytes] = field(default_factory=lambda: dict[int, bytes]())
    references: dict[int, int] = field(default_factory=lambda: dict[int, int]())

    @property
    def changes_nothing(self) -> bool:
        """Whether there is nothing to do at all."""
        return not (self.payload or self.zeros or self.entries or self.places)
