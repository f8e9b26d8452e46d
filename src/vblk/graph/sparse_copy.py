"""Copying between two file descriptors without the zeros.

Owns: one loop over a small buffer that stays in the processor's cache, so that
looking for zeros costs little more than copying does. It blocks: callers run it
on a worker. It knows no nodes, and the target must read as zeros already. And the
glance before it, for targets that take space in large units.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from vblk.aio.engine import storage_error
from vblk.aio.file_calls import KEEP_SIZE, PUNCH_HOLE, fallocate
from vblk.units import KIB, MIB

BUFFER_SIZE = 256 * KIB
"""Measured: more falls out of the cache, less pays more for system calls."""

GLANCE = 4 * KIB
"""The first read of a unit, in bytes, to see whether it has data."""

RESERVED_MIN = MIB
"""Less than this, in bytes, is not worth a call to reserve its space."""

RESERVATIONS_MAX = 4
"""How often one copy reserves: where data and zeros take turns it is of no use."""

_ZEROS = bytes(BUFFER_SIZE)
_own = threading.local()


Saw = Callable[[int, memoryview], object]
"""Told of bytes that pass, and where in the range they are."""


def copy_without_zeros(
    source: int,
    target: int,
    source_offset: int,
    target_offset: int,
    length: int,
    *,
    unit: int,
    saw: Saw = lambda at, data: None,
) -> int:
    """Copy a range, leaving out every run of whole zero units.

    Args:
        source: Descriptor to read from.
        target: Descriptor to write to; the range reads as zeros there.
        source_offset: First byte to read.
        target_offset: Where it goes.
        length: Bytes.
        unit: Bytes, a divisor of `BUFFER_SIZE`; units count from `target_offset`.
        saw: Told of all that is read, zeros as well, before it is written.

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
    with memoryview(buffer) as view, _Reservation(target, target_offset, length) as reserved:
        while done < length:
            try:
                count = os.preadv(source, [view[: min(BUFFER_SIZE, length - done)]], source_offset + done)
                if not count:
                    break
                saw(done, view[:count])
                runs = data_runs(buffer, count, unit)
                reserved.look_at(done, runs == [(0, count)])
                for start, end in runs:
                    _write(target, view[start:end], target_offset + done + start)
            except OSError as error:
                raise storage_error(
                    error, operation="copy", offset=target_offset + done, length=length - done
                ) from error
            done += count
            reserved.used = done
    return done


def units_with_data(source: int, offset: int, length: int, *, unit: int, phase: int) -> list[tuple[int, int]]:
    """Return (start, end), from `offset` on, of each run of units that are not all zeros.

    As little is read as shows it: of a unit with data mostly its first 4 KiB.

    Args:
        source: Descriptor to read from.
        offset: First byte.
        length: Bytes.
        unit: Bytes.
        phase: Where in a unit the range begins.

    Raises:
        StorageError: Reading failed.
    """
    runs: list[tuple[int, int]] = []
    start = 0
    while start < length:
        end = min(length, start + unit - (phase + start) % unit)
        if _has_data(source, offset + start, end - start):
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        start = end
    return runs


def _has_data(source: int, offset: int, length: int) -> bool:
    done, step = 0, GLANCE
    while done < length:
        try:
            data = os.pread(source, min(step, length - done), offset + done)
        except OSError as error:
            raise storage_error(
                error, operation="read", offset=offset + done, length=length - done
            ) from error
        if not data:
            break  # beyond the end of the file: copying will tell
        if not _ZEROS.startswith(data):
            return True
        done += len(data)
        step = BUFFER_SIZE
    return done < length


class _Reservation:
    """Space of the target that is allocated at once, as long as everything is data.

    Measured: the file system takes a third of the time for data that goes into
    allocated space. What was reserved and not written is given back, so that
    zeros stay holes.
    """

    def __init__(self, target: int, offset: int, length: int) -> None:
        self._target = target
        self._offset = offset
        self._end = length
        self._attempts = RESERVATIONS_MAX
        self._active = False
        self.used = 0

    def __enter__(self) -> "_Reservation":
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def look_at(self, position: int, is_dense: bool) -> None:
        """Decide by what the next buffer holds: data reserves the rest, zeros end that."""
        if not is_dense:
            self._give_back()
        elif not self._active and self._attempts and self._end - position >= RESERVED_MIN:
            self._attempts -= 1
            try:
                fallocate(self._target, KEEP_SIZE, self._offset + position, self._end - position)
                self._active = True
            except OSError:  # no such call here, or no space: writing will tell
                self._attempts = 0

    def _give_back(self) -> None:
        if self._active and self.used < self._end:
            with suppress(OSError):
                mode = PUNCH_HOLE | KEEP_SIZE
                fallocate(self._target, mode, self._offset + self.used, self._end - self.used)
        self._active = False


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
