"""The images that are measured, and how their contents are compared.

Owns: making inputs of a given size, and file systems on loop devices to put
them on. It must not know what is done with them.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import random
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

from bench.measure import NotMeasured, WrongResult, run
from tests.support.vhdx.image import Block, State, Vhdx
from vblk.units import GIB, KIB, MIB, TIB, align_down

DATA_RUN = 24 * MIB
HOLE_RUN = 8 * MIB
DIGEST_PIECE = 64 * KIB


def data_runs(data_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of each run of data in a disk that holds `data_bytes` of it."""
    offset = 0
    while data_bytes > 0:
        length = min(DATA_RUN, data_bytes)
        yield offset, length
        offset += length + HOLE_RUN
        data_bytes -= length


def make_raw(path: Path, data_bytes: int, *, size: int = 0) -> Path:
    """Write a sparse raw disk: runs of data that does not compress, with holes between.

    The disk has `size` bytes, or as many as its data needs.
    """
    noise = random.Random(1).randbytes(MIB)
    with path.open("wb") as file:
        for offset, length in data_runs(data_bytes):
            file.seek(offset)
            for number in range(-(-length // MIB)):
                file.write((offset + number).to_bytes(8, "little"))
                file.write(noise[: min(MIB, length - number * MIB) - 8])
        file.truncate(max(size, file.tell() + HOLE_RUN))
    return path


def make_vhdx(raw: Path, path: Path) -> Path:
    """Put a raw disk into a dynamic VHDX, as QEMU makes it."""
    run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", raw, path])
    return path


def make_small(path: Path) -> Path:
    """Make a VHDX of 16 MiB in which one block is there."""
    return Vhdx(blocks={1: Block(State.FULLY_PRESENT, b"vblk" * KIB)}).build(path)


def make_huge(path: Path) -> Path:
    """Make a VHDX of the greatest size, 64 TiB, with the smallest blocks, 1 MiB; six are there."""
    count = 64 * TIB // MIB
    numbers = (0, 1, 4095, 4096, GIB // KIB, count - 1)
    present = {number: Block(State.FULLY_PRESENT, b"vblk" * KIB) for number in numbers}
    return Vhdx(size=64 * TIB, block_size=MIB, blocks=present).build(path)


def warm(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def copy_by_pages(source: Path, target: Path) -> None:
    """Copy a file in writes of one page each, as a guest makes its disk, and bring it to the medium.

    In the large pieces that copying a whole file leaves in the page cache the kernel
    takes several times as long for each later 4 KiB, whoever writes.
    """
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        while data := memoryview(read.read(MIB)):
            for offset in range(0, len(data), mmap.PAGESIZE):
                written.write(data[offset : offset + mmap.PAGESIZE])
        os.fsync(written.fileno())


def digest(path: Path) -> str:
    """Return a digest of a file's length and of all that is not zero in it, wherever its holes are."""
    found = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb", buffering=0) as file:
        for offset in _data_pieces(file.fileno(), path.stat().st_size):
            data = os.pread(file.fileno(), DIGEST_PIECE, offset)
            if data != bytes(len(data)):
                found.update(b"%d:" % offset + data)
    return found.hexdigest()


def _data_pieces(fd: int, size: int) -> Iterator[int]:
    """Yield the offsets of the pieces in which a file has data."""
    offset = after = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, offset, os.SEEK_HOLE)
        offset = max(align_down(offset, DIGEST_PIECE), after)
        while offset < end:
            yield offset
            offset += DIGEST_PIECE
        after = offset


def file_system_of(path: Path) -> str:
    """Return the kind of file system that a path is on."""
    command = ["stat", "--file-system", "--format=%T", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def mounted(folder: Path, kind: str, size: int) -> Generator[Path, None, None]:
    """Mount a new file system of `size` bytes from an image in `folder`.

    Raises:
        NotMeasured: Mounting needs root, or this kernel cannot do it.
    """
    if os.geteuid() != 0:
        raise NotMeasured(f"mounting {kind} needs root")
    image, place = folder / f"{kind}.img", folder / kind
    with image.open("wb") as file:
        file.truncate(size)
    place.mkdir()
    try:
        run([f"mkfs.{kind}", "-q", image])
        run(["mount", "-o", "loop", image, place])
    except (WrongResult, FileNotFoundError) as error:
        image.unlink()
        place.rmdir()
        raise NotMeasured(f"{kind} cannot be mounted here: {error}") from error
    try:
        yield place
    finally:
        run(["umount", place])
        place.rmdir()
        image.unlink()
