"""Reference counts inside a page of a refcount block: 1 to 64 bits wide.

Owns: the arithmetic. Narrower counts than a byte begin with its lowest bits;
wider ones are big-endian.

Source: docs/interop/qcow2.txt, "Host cluster management".
"""

import re
from collections.abc import Iterator

_ZEROS = re.compile(rb"\0+")


def get_count(page: bytes | bytearray, order: int, index: int) -> int:
    """Return count number `index` of a page; counts are `1 << order` bits wide."""
    if order >= 3:
        width = 1 << (order - 3)
        return int.from_bytes(page[index * width : (index + 1) * width], "big")
    bits = 1 << order
    bit = index * bits
    return page[bit >> 3] >> (bit & 7) & ((1 << bits) - 1)


def set_count(page: bytearray, order: int, index: int, count: int) -> None:
    """Set count number `index` of a page."""
    assert 0 <= count <= count_max(order), "a count that does not fit"
    if order >= 3:
        width = 1 << (order - 3)
        page[index * width : (index + 1) * width] = count.to_bytes(width, "big")
        return
    bits = 1 << order
    bit = index * bits
    cleared = page[bit >> 3] & ~(((1 << bits) - 1) << (bit & 7))
    page[bit >> 3] = cleared | count << (bit & 7)


def count_max(order: int) -> int:
    """Return the greatest count of that width."""
    return (1 << (1 << order)) - 1


def counts_of(data: bytes, order: int) -> Iterator[int]:
    """Yield all counts of a page or block."""
    per_byte = len(data) * 8 >> order
    return (get_count(data, order, index) for index in range(per_byte))


def zero_runs(data: bytes, order: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the runs of counts that are 0."""
    if order < 3:
        yield from _narrow_zero_runs(data, order)
        return
    width = 1 << (order - 3)
    for found in _ZEROS.finditer(data):
        first, end = -(-found.start() // width), found.end() // width
        if first < end:
            yield first, end


def _narrow_zero_runs(data: bytes, order: int) -> Iterator[tuple[int, int]]:
    start: int | None = None
    for index, count in enumerate(counts_of(data, order)):
        if count and start is not None:
            yield start, index
            start = None
        elif not count and start is None:
            start = index
    if start is not None:
        yield start, len(data) * 8 >> order
