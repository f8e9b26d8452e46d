"""Mounts of the tests: what is there, and that nothing stays.

Owns: a folder below which nothing is mounted when the test has ended, whatever came of it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None,
    reason="mounting needs root, /dev/fuse and fusermount3",
)


def mounted_below(folder: Path) -> list[str]:
    """Return what is mounted in a folder or below it, the last one first."""
    with open("/proc/self/mountinfo") as table:
        spelled = [line.split()[4] for line in table]
    places = [re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), each) for each in spelled]
    return [place for place in reversed(places) if Path(place).is_relative_to(folder)]


@contextmanager
def nothing_stays_mounted(folder: Path) -> Generator[None]:
    """Unmount, when the block has ended, what is mounted below a folder."""
    try:
        yield
    finally:
        for place in mounted_below(folder):
            subprocess.run(["umount", "-l", place], check=False, capture_output=True)
