"""CRC-32C, the Castagnoli checksum.

Owns: the checksum of bytes in memory, by a compiled routine where one is
installed and by tables where not. It must not know what the bytes mean.
Order: `extend(crc32c(a), b)` equals `crc32c(a + b)`.
"""

import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import cast

_POLYNOMIAL = 0x82F63B78
"""0x1EDC6F41 with its bits reversed: the checksum works on the least significant bit first."""

_ZERO_RUN = re.compile(rb"\x00{64,}")
"""A run long enough that jumping over it is cheaper than walking through it."""


@cache
def _byte_table() -> list[int]:
    """Return what a byte does to the register; made when the tables are first needed."""
    table: list[int] = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


def _apply(matrix: list[int], vector: int) -> int:
    """Multiply a 32 x 32 matrix over GF(2), given by columns, by a vector."""
    result = 0
    for column in matrix:
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


_zero_steps: list[list[int]] = []
"""Matrix k carries the register over 2**k zero bytes; grown on demand."""


def _zero_step(power: int) -> list[int]:
    if not _zero_steps:
        table = _byte_table()
        _zero_steps.append([(column >> 8) ^ table[column & 0xFF] for column in (1 << i for i in range(32))])
    while len(_zero_steps) <= power:
        last = _zero_steps[-1]
        _zero_steps.append([_apply(last, column) for column in last])
    return _zero_steps[power]


def _advance_zeros(register: int, count: int) -> int:
    power = 0
    while count:
        if count & 1:
            register = _apply(_zero_step(power), register)
        count >>= 1
        power += 1
    return register


def _walk(register: int, data: bytes) -> int:
    table = _byte_table()
    for byte in data:
        register = (register >> 8) ^ table[(register ^ byte) & 0xFF]
    return register


def extend_portable(crc: int, data: bytes) -> int:
    """Continue the checksum `crc` with `data`, in Python alone.

    Long runs of zeros, of which headers and tables mostly consist, cost the
    logarithm of their length.
    """
    register = crc ^ 0xFFFFFFFF
    at = 0
    for run in _ZERO_RUN.finditer(data):
        register = _walk(register, data[at : run.start()])
        register = _advance_zeros(register, run.end() - run.start())
        at = run.end()
    return _walk(register, data[at:]) ^ 0xFFFFFFFF


def _choose() -> Callable[[int, bytes], int]:
    try:
        with warnings.catch_warnings():
            # Without its compiled part the package warns, and is slower than the tables here.
            warnings.simplefilter("ignore")
            import google_crc32c
    except ImportError:
        return extend_portable
    if google_crc32c.implementation != "c":
        return extend_portable
    return cast("Callable[[int, bytes], int]", getattr(google_crc32c, "extend"))  # noqa: B009


_extend = _choose()


def extend(crc: int, data: bytes) -> int:
    """Continue the checksum `crc` of earlier bytes with `data`."""
    return _extend(crc, data)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`; of b"123456789" it is 0xE3069283."""
    return _extend(0, data)


def crc32c_without(data: bytes, field_offset: int) -> int:
    """Return the CRC-32C of `data` with the 4 bytes at `field_offset` taken as zero.

    So the field may hold the checksum itself.
    """
    crc = _extend(0, data[:field_offset])
    crc = _extend(crc, bytes(4))
    return _extend(crc, data[field_offset + 4 :])
