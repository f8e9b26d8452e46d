"""Small file systems of a kind of our choice, mounted from a file for the length of a test.

Owns: making, mounting and unmounting. Only root can.
"""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")

_MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
}


@contextmanager
def mounted(kind: str, size: int, folder: Path) -> Generator[Path, None, None]:
    """Yield the folder where a new file system of `size` bytes is mounted."""
    image, place = folder / f"{kind}.img", folder / f"{kind}.mnt"
    with image.open("wb") as file:
        file.truncate(size)
    place.mkdir()
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    if kind == "tmpfs":
        mount = ["-t", "tmpfs", "-o", f"size={size}", "none"]
    else:
        subprocess.run([*_MAKE[kind], str(image)], check=True, capture_output=True, env=environment)
        mount = ["-o", "loop", str(image)]
    subprocess.run(["mount", *mount, str(place)], check=True, env=environment)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, env=environment)
        image.unlink()
