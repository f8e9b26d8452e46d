"""Other people's readers of VHDX, as oracles, each with the limits within which it is right.

Owns: how to ask `qemu-img`, 7-Zip, libvhdi and dissect for what a guest sees.
It must not use the product.
"""

import hashlib
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import pyvhdi
from dissect.hypervisor.disk.vhdx import VHDX  # pyright: ignore[reportMissingTypeStubs]

_STEP = 1 << 20


class Reader(Protocol):
    """Reads guest bytes."""

    def __call__(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        ...


def sha256_of(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_through(read: Reader, size: int, step: int = _STEP) -> str:
    """Return the digest of all that `read` gives, asked for in aligned steps."""
    digest = hashlib.sha256()
    for offset in range(0, size, step):
        digest.update(read(offset, min(step, size - offset)))
    return digest.hexdigest()


def qemu_sha256(path: Path, scratch: Path) -> str:
    """Digest the disk as `qemu-img` shows it: no differencing, 512-byte sectors only."""
    raw = scratch / (path.name + ".qemu.raw")
    subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw], check=True, timeout=100)
    try:
        return sha256_of(raw)
    finally:
        raw.unlink()


def seven_zip_sha256(path: Path, scratch: Path) -> str:
    """Digest the disk as 7-Zip shows it.

    Right for every clean image but those whose size is an odd number of
    512-byte sectors, whose chain leaves the folder, or whose child is larger
    than its parent.
    """
    output = scratch / (path.name + ".7z")
    arguments = ["7zz", "x", "-y", "-tvhdx", f"-o{output}", str(path)]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (raw,) = output.iterdir()
    try:
        return sha256_of(raw)
    finally:
        raw.unlink()


@contextmanager
def vhdi(*paths: Path) -> Generator[Reader]:
    """Read through libvhdi: the top first, then its ancestors.

    Right below 4 GiB, where no differencing level holds states 1 to 3 and no
    child is larger than its parent.
    """
    files: list[Any] = []
    library = cast("Any", pyvhdi)
    for path in reversed(paths):
        file = library.file()
        file.open(str(path))
        if files:
            file.set_parent(files[-1])
        files.append(file)

    def read(offset: int, length: int) -> bytes:
        return cast("bytes", files[-1].read_buffer_at_offset(length, offset))

    try:
        yield read
    finally:
        for file in reversed(files):
            file.close()


@contextmanager
def dissect(path: Path) -> Generator[Reader]:
    """Read through dissect.hypervisor: no differencing, 512-byte sectors, aligned block by block."""
    with path.open("rb") as file:
        disk = cast("Any", VHDX)(file)

        def read(offset: int, length: int) -> bytes:
            disk.seek(offset)
            return cast("bytes", disk.read(length))

        yield read
