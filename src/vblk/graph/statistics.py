"""What was asked of a disk: how often, how much, how long it took, and what failed.

Owns: the counters, QEMU's names for them, and Prometheus' text format. It takes
no time itself: whoever carries requests out says what they took, one by one or
many that were answered together.

Source: QEMU's QAPI reference, BlockDeviceStats; Prometheus, "Text-based
format", version 0.0.4.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

FINEST: Final = 11
"""The first bucket of a histogram holds what took less than two to this power nanoseconds: 2 µs."""

BUCKETS: Final = 24
"""Each bucket but the last ends at twice the time of the one before; the last has no end."""


class Operation(enum.IntEnum):
    """The kinds of request that are counted apart."""

    READ = 0
    WRITE = 1
    ZERO = 2
    DISCARD = 3
    FLUSH = 4


class Counter:
    """What was asked of one kind. Times are in nanoseconds; `buckets` counts by their powers of two."""

    __slots__ = ("buckets", "bytes", "failed", "operations", "total_ns")

    def __init__(self) -> None:
        self.operations = 0
        self.bytes = 0
        self.failed = 0
        self.total_ns = 0
        self.buckets = [0] * BUCKETS


class Statistics:
    """The counters of one user of a disk, and the number of its requests in flight.

    Requests that ended well are in `operations`, `bytes` and the times; others
    in `failed` alone.

    Concurrency: belongs to one event loop's thread; every method runs to completion.
    """

    __slots__ = ("counters", "in_flight", "wr_highest_offset")

    def __init__(self) -> None:
        self.counters = [Counter() for _ in Operation]
        self.in_flight = 0
        self.wr_highest_offset = 0
        """The end of the highest write, in bytes, if whoever counts keeps it."""

    def account(self, operation: int, length: int, ns: int, count: int = 1) -> None:
        """Count `count` requests that ended well, of `length` bytes together, each after `ns`."""
        counter = self.counters[operation]
        counter.operations += count
        counter.bytes += length
        counter.total_ns += ns * count
        bucket = (ns >> FINEST).bit_length()
        counter.buckets[bucket if bucket < BUCKETS else -1] += count

    def fail(self, operation: int) -> None:
        """Count a request that failed."""
        self.counters[operation].failed += 1

    def add(self, other: "Statistics") -> None:
        """Add what another user asked for."""
        for mine, its in zip(self.counters, other.counters, strict=True):
            mine.operations += its.operations
            mine.bytes += its.bytes
            mine.failed += its.failed
            mine.total_ns += its.total_ns
            mine.buckets = [a + b for a, b in zip(mine.buckets, its.buckets, strict=True)]
        self.in_flight += other.in_flight
        self.wr_highest_offset = max(self.wr_highest_offset, other.wr_highest_offset)


def block_stats(statistics: Statistics) -> dict[str, Any]:
    """Return QEMU's BlockDeviceStats, its members in QEMU's order; zeroing counts as writing."""
    read, write, zero, discard, flush = statistics.counters
    return {
        "unmap_operations": discard.operations,
        "unmap_merged": 0,
        "flush_total_time_ns": flush.total_ns,
        "wr_highest_offset": statistics.wr_highest_offset,
        "wr_total_time_ns": write.total_ns + zero.total_ns,
        "failed_wr_operations": write.failed + zero.failed,
        "failed_rd_operations": read.failed,
        "wr_merged": 0,
        "wr_bytes": write.bytes + zero.bytes,
        "timed_stats": [],
        "failed_unmap_operations": discard.failed,
        "failed_flush_operations": flush.failed,
        "account_invalid": False,
        "rd_total_time_ns": read.total_ns,
        "invalid_unmap_operations": 0,
        "flush_operations": flush.operations,
        "wr_operations": write.operations + zero.operations,
        "unmap_bytes": discard.bytes,
        "rd_merged": 0,
        "rd_bytes": read.bytes,
        "unmap_total_time_ns": discard.total_ns,
        "invalid_flush_operations": 0,
        "account_failed": False,
        "rd_operations": read.operations,
        "invalid_wr_operations": 0,
        "invalid_rd_operations": 0,
    }


class Measured(NamedTuple):
    """Something with statistics: what kind of thing it is ("export"), and the labels that tell it apart."""

    thing: str
    labels: Mapping[str, str]
    statistics: Statistics


class _Family(NamedTuple):
    name: str
    help: str
    field: str


_COUNTERS: Final = (
    _Family("operations_total", "Requests that ended well.", "operations"),
    _Family("bytes_total", "Bytes that they were about.", "bytes"),
    _Family("failed_total", "Requests that failed.", "failed"),
)


def prometheus_text(things: Iterable[Measured]) -> str:
    """Return everything that was counted, in the text format of Prometheus, version 0.0.4."""
    by_thing: dict[str, list[Measured]] = {}
    for measured in things:
        by_thing.setdefault(measured.thing, []).append(measured)
    return "".join(f"{line}\n" for thing, members in by_thing.items() for line in _lines(thing, members))


def _lines(thing: str, members: list[Measured]) -> Iterator[str]:
    for family in _COUNTERS:
        name = f"vblk_{thing}_{family.name}"
        yield from _head(name, family.help, "counter")
        for labels, counter in _by_operation(members):
            yield f"{name}{{{labels}}} {getattr(counter, family.field)}"
    name = f"vblk_{thing}_latency_seconds"
    yield from _head(name, "How long they took.", "histogram")
    for labels, counter in _by_operation(members):
        below = 0
        for number, count in enumerate(counter.buckets):
            below += count
            bound = "+Inf" if number == BUCKETS - 1 else repr((1 << FINEST + number) / 1e9)
            yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
        yield f"{name}_sum{{{labels}}} {counter.total_ns / 1e9!r}"
        yield f"{name}_count{{{labels}}} {counter.operations}"
    name = f"vblk_{thing}_in_flight"
    yield from _head(name, "Requests that have not ended.", "gauge")
    for measured in members:
        yield f"{name}{{{_text(measured.labels)}}} {measured.statistics.in_flight}"


def _head(name: str, help: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"


def _by_operation(members: list[Measured]) -> Iterator[tuple[str, Counter]]:
    for measured in members:
        for operation, counter in zip(Operation, measured.statistics.counters, strict=True):
            yield _text({**measured.labels, "operation": operation.name.lower()}), counter


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    text = value.encode("utf-8", errors="replace").decode()  # names may be any bytes, this format is UTF-8
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
