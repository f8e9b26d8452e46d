"""CRC-32C, written from the polynomial alone.

Owns: the checksum of the VHDX builder. It must not use the product's own
checksum, which it is there to judge. Runs of zeros, of which headers and region
tables consist, are passed over with a matrix instead of byte by byte.
"""

import re

_POLYNOMIAL = 0x82F63B78
_ZERO_RUN = re.compile(rb"\0{64,}")


def _table() -> list[int]:
    table: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def _apply(columns: list[int], vector: int) -> int:
    result = 0
    for column in columns:
        if not vector:
            break
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def _zero_operators() -> list[list[int]]:
    one_byte = [_TABLE[1 << bit & 0xFF] ^ (1 << bit) >> 8 for bit in range(32)]
    operators = [one_byte]
    for _ in range(32):
        last = operators[-1]
        operators.append([_apply(last, column) for column in last])
    return operators


_ZEROS = _zero_operators()


def _feed(state: int, data: bytes) -> int:
    for byte in data:
        state = state >> 8 ^ _TABLE[(state ^ byte) & 0xFF]
    return state


def _feed_zeros(state: int, count: int) -> int:
    for operator in _ZEROS:
        if not count:
            break
        if count & 1:
            state = _apply(operator, state)
        count >>= 1
    return state


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`."""
    state = 0xFFFFFFFF
    position = 0
    for run in _ZERO_RUN.finditer(data):
        state = _feed(state, data[position : run.start()])
        state = _feed_zeros(state, run.end() - run.start())
        position = run.end()
    return _feed(state, data[position:]) ^ 0xFFFFFFFF
