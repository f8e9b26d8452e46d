"""A real ext4 file system that was filled and then half emptied, and what of it is in use.

Owns: making it with e2fsprogs, and reading its bitmaps. It must not use the product.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from random import Random

MIB = 1 << 20
FS_BLOCK = 4096
_FREE = re.compile(r"^  Free blocks: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system in the raw image `path`; ranges are (offset, length) in bytes."""

    path: Path
    free: list[tuple[int, int]]

    @property
    def live_bytes(self) -> int:
        """Bytes that are in use."""
        return self.path.stat().st_size - sum(length for _, length in self.free)

    def blocks_in_use(self, block_size: int) -> int:
        """Return how many blocks of a disk hold something of it."""
        size = self.path.stat().st_size
        used: set[int] = set()
        at = 0
        for start, length in [*self.free, (size, 0)]:
            if start > at:
                used.update(range(at // block_size, (start - 1) // block_size + 1))
            at = start + length
        return len(used)


def half_empty_ext4(folder: Path, *, size: int, files: int, file_size: int) -> FileSystem:
    """Fill a file system with so many files of random bytes, and delete one directory of the two."""
    lot = Random(7)
    for name in ("kept", "gone"):
        (folder / "tree" / name).mkdir(parents=True)
        for number in range(files // 2):
            (folder / "tree" / name / str(number)).write_bytes(lot.randbytes(file_size))
    path = folder / "ext4.raw"
    with path.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-b", str(FS_BLOCK), "-d", folder / "tree", path)
    commands = folder / "commands"
    commands.write_text("".join(f"rm /gone/{number}\n" for number in range(files // 2)))
    _run("debugfs", "-w", "-f", commands, path)
    _run("e2fsck", "-f", "-n", path)
    return FileSystem(path, _free_ranges(_run("dumpe2fs", path)))


def _free_ranges(text: str) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for line in _FREE.findall(text):
        for part in filter(None, line.split(", ")):
            first, _, last = part.partition("-")
            ranges.append((int(first) * FS_BLOCK, (int(last or first) - int(first) + 1) * FS_BLOCK))
    return sorted(ranges)


def _run(*words: str | Path) -> str:
    ran = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
