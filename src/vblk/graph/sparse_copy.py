"""Copying between two file descriptors without the zeros.

Owns: one loop over a small buffer that stays in the processor's cache, so that
looking for zeros costs little more than copying does. It blocks: callers run it
on a worker. It knows no nodes, and the target must read as zeros already.
"""

import os
import threading

from vblk.aio.engine import storage_error
from vblk.units import KIB

BUFFER_SIZE = 256 * KIB
"""Measured: more falls out of the cache, less pays more for system calls."""

_ZEROS = bytes(BUFFER_SIZE)
_own = threading.local()


def copy_without_zeros(
    source: int, target: int, source_offset: int, target_offset: int, length: int, *, unit: int
) -> int:
    """Copy a range, leaving out every run of whole zero units.

    Args:
        source: Descriptor to read from.
        target: Descriptor to write to; the range reads as zeros there.
        source_offset: First byte to read.
        target_offset: Where it goes.
        length: Bytes.
        unit: Bytes, a divisor of `BUFFER_SIZE`; units count from `target_offset`.

    Returns: how many bytes are as they should be: fewer than `length` only
        where the source ends.

    Raises:
        NoSpace: The target's file system is full.
        StorageError: Reading or writing failed.
    """
    buffer: bytearray | None = getattr(_own, "buffer", None)
    if buffer is None:
        buffer = _own.buffer = bytearray(BUFFER_SIZE)
    done = 0
    with memoryview(buffer) as view:
        while done < length:
            try:
                count = os.preadv(source, [view[: min(BUFFER_SIZE, length - done)]], source_offset + done)
                if not count:
                    break
                for start, end in data_runs(buffer, count, unit):
                    _write(target, view[start:end], target_offset + done + start)
            except OSError as error:
                raise storage_error(
                    error, operation="copy", offset=target_offset + done, length=length - done
                ) from error
            done += count
    return done


def data_runs(buffer: bytes | bytearray, count: int, unit: int) -> list[tuple[int, int]]:
    """Return (start, end) of each run of units of the first `count` bytes that are not all zeros."""
    if count == BUFFER_SIZE and buffer.startswith(_ZEROS):
        return []
    zero = bytes(unit)
    is_zero = buffer.startswith
    runs: list[tuple[int, int]] = []
    first = -1
    for start in range(0, count, unit):
        if is_zero(zero if start + unit <= count else zero[: count - start], start):
            if first >= 0:
                runs.append((first, start))
                first = -1
        elif first < 0:
            first = start
    if first >= 0:
        runs.append((first, count))
    return runs


def _write(target: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], offset + done)
