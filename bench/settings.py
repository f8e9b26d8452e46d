"""How large a run of the benchmarks is, and where it works.

Owns: the numbers that a user may choose.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from vblk.units import GIB, MIB

VBLK = Path(sys.executable).parent / "vblk"
"""The command line of the environment that runs the benchmarks."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One run; `folder` is on the file system that is measured."""

    folder: Path
    data_bytes: int
    shared_bytes: int
    """The data where a file system shares blocks: more, so that vblk's start is not all there is."""
    rounds: int
    reads: int
    """Random reads of one turn."""
    overwrites: int
    """Random writes of one turn to a disk of `overwritten_bytes`."""
    overwritten_bytes: int
    allocations: int
    """Random writes of one turn, each to a block of its own."""
    served_bytes: int = GIB
    """The full disk that servers show."""
    serving_seconds: float = 2
    """How long one turn of a client lasts; 0: a few requests."""
    disk_bytes: int = 127 * GIB
    """The disk that holds the data: by default as large as Hyper-V makes new ones."""

    @classmethod
    def full(cls, folder: Path, data_mib: int, rounds: int) -> "Settings":
        """Return what `make bench` runs."""
        return cls(folder, data_mib * MIB, 5 * data_mib * MIB, rounds, 100_000, 20_000, 256 * MIB, 512)

    @classmethod
    def tiny(cls, folder: Path) -> "Settings":
        """Return a run of seconds, for correctness only: its ratios mean nothing."""
        return cls(folder, 8 * MIB, 8 * MIB, 1, 200, 200, 8 * MIB, 16, 8 * MIB, 0, disk_bytes=GIB)
