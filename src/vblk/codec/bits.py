"""Bitmaps: runs of equal bits, found fast, and ranges of bits, changed fast.

Owns: the arithmetic on bits in bytes. What a bit means is its user's business: a
sector of a VHDX block, or a dirty piece of a disk.

    Bit n is bit n % 8 of byte n // 8, least significant first.

Source: [MS-VHDX] "Sector Bitmap Blocks", whose order this is.
"""

import re
from collections.abc import Iterator
from functools import cache

_UNIFORM_OR_MIXED = re.compile(rb"\x00+|\xff+|[^\x00\xff]", re.DOTALL)


@cache
def _runs_of_byte(byte: int) -> tuple[tuple[bool, int], ...]:
    """Return the (bit, count) runs of a byte, so that only mixed bytes are looked up singly."""
    runs: list[tuple[bool, int]] = []
    for position in range(8):
        bit = bool(byte >> position & 1)
        if runs and runs[-1][0] is bit:
            runs[-1] = (bit, runs[-1][1] + 1)
        else:
            runs.append((bit, 1))
    return tuple(runs)


def _byte_runs(data: bytes) -> Iterator[tuple[bool, int]]:
    for match in _UNIFORM_OR_MIXED.finditer(data):
        start, end = match.span()
        byte = data[start]
        if byte == 0:
            yield False, (end - start) * 8
        elif byte == 0xFF:
            yield True, (end - start) * 8
        else:
            yield from _runs_of_byte(byte)


def bit_runs(data: bytes, first_bit: int, count: int) -> Iterator[tuple[bool, int]]:
    """Yield (bit, length) for runs of equal bits, lengths summing to `count`.

    Args:
        data: Bytes of a bitmap.
        first_bit: The first bit to look at, from the start of `data`.
        count: How many bits to look at, > 0; all of them lie in `data`.
    """
    first_byte, skip = divmod(first_bit, 8)
    last_byte = (first_bit + count + 7) // 8
    left = count
    held: bool | None = None
    length = 0
    for bit, run in _byte_runs(data[first_byte:last_byte]):
        if skip >= run:
            skip -= run
            continue
        taken = min(run - skip, left)
        skip = 0
        if bit is held:
            length += taken
        else:
            if held is not None:
                yield held, length
            held, length = bit, taken
        left -= taken
        if left == 0:
            break
    if held is not None:
        yield held, length


def set_bits(data: bytearray, first_bit: int, count: int) -> None:
    """Set `count` bits, > 0, from `first_bit` on."""
    first, last = first_bit >> 3, (first_bit + count - 1) >> 3
    head, tail = 0xFF << (first_bit & 7) & 0xFF, 0xFF >> (7 - (first_bit + count - 1 & 7))
    if first == last:
        data[first] |= head & tail
        return
    data[first] |= head
    data[first + 1 : last] = b"\xff" * (last - first - 1)
    data[last] |= tail


def clear_bits(data: bytearray, first_bit: int, count: int) -> None:
    """Clear `count` bits, > 0, from `first_bit` on."""
    first, last = first_bit >> 3, (first_bit + count - 1) >> 3
    head, tail = 0xFF << (first_bit & 7) & 0xFF, 0xFF >> (7 - (first_bit + count - 1 & 7))
    if first == last:
        data[first] &= ~(head & tail) & 0xFF
        return
    data[first] &= ~head & 0xFF
    data[first + 1 : last] = bytes(last - first - 1)
    data[last] &= ~tail & 0xFF


def all_set(data: bytes | bytearray, first_bit: int, count: int) -> bool:
    """Tell whether `count` bits, > 0, from `first_bit` on are all set."""
    first, last = first_bit >> 3, (first_bit + count - 1) >> 3
    head, tail = 0xFF << (first_bit & 7) & 0xFF, 0xFF >> (7 - (first_bit + count - 1 & 7))
    if first == last:
        return data[first] & head & tail == head & tail
    return (
        data[first] & head == head
        and data[last] & tail == tail
        and data[first + 1 : last] == b"\xff" * (last - first - 1)
    )
