"""A node that answers late, for those who want to see what that does.

Owns: how long each kind of request waits before it is made. A drain does not wait
for delays that have not begun to end: what is held back goes on at once.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.aio.clock import Clock
from vblk.errors import OptionError
from vblk.filters.passing import PassingNode
from vblk.graph.edge import Role
from vblk.graph.node import Node
from vblk.graph.objects import Objects
from vblk.graph.site import Site
from vblk.options import Scalar, bind, check_children

LATENCY_MAX = 3600 * 10**9
"""An hour, in nanoseconds."""


@dataclass(slots=True)
class Options:
    """Nanoseconds that each request waits: reads, all that changes the disk, flushes."""

    read_latency_ns: int = 0
    write_latency_ns: int = 0
    flush_latency_ns: int = 0

    def __post_init__(self) -> None:
        for latency in (self.read_latency_ns, self.write_latency_ns, self.flush_latency_ns):
            if not 0 <= latency <= LATENCY_MAX:
                raise OptionError(f"a latency must be 0 to {LATENCY_MAX} nanoseconds, not {latency}")


class DelayNode(PassingNode):
    """A node whose requests wait on a clock before they are made."""

    driver: ClassVar[str] = "delay"
    changeable: ClassVar[frozenset[str]] = frozenset(
        ("read-latency-ns", "write-latency-ns", "flush-latency-ns")
    )

    def __init__(self, name: str, file: Node, options: Options, clock: Clock, **how: Any) -> None:
        """Stand over `file`; `clock` is what requests wait on."""
        super().__init__(name, file, **how)
        self._clock = clock
        self._seconds = _seconds_of(options)
        self._waiting: set[asyncio.Task[None]] = set()

    async def before(self, operation: str, offset: int, length: int) -> None:
        """Wait."""
        seconds = self._seconds.get(operation, 0.0)
        if not seconds or self.hurried:
            return
        wait = asyncio.ensure_future(self._clock.sleep(seconds))
        self._waiting.add(wait)
        try:
            await asyncio.wait([wait])
        finally:
            self._waiting.discard(wait)
            wait.cancel()

    def prepare_options(self, objects: Objects, own: Mapping[str, Scalar]) -> Callable[[], None]:
        """Read other latencies."""
        seconds = _seconds_of(bind(own, Options, "delay"))

        def change() -> None:
            self._seconds = seconds

        return change

    def hurry(self) -> None:
        """End every wait."""
        super().hurry()
        for wait in self._waiting:
            wait.cancel()

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read at once, where reads do not wait."""
        return None if self._seconds["read"] else super().try_read(offset, length)


def _seconds_of(options: Options) -> dict[str, float]:
    """Return how long each kind of request waits."""
    return {
        "read": options.read_latency_ns / 1e9,
        "write": options.write_latency_ns / 1e9,
        "write-zeroes": options.write_latency_ns / 1e9,
        "discard": options.write_latency_ns / 1e9,
        "flush": options.flush_latency_ns / 1e9,
    }


async def open_node(site: Site) -> DelayNode:
    """Open the node under the key `file`, and make it late."""
    check_children(site.options, "delay", "file")
    options = bind(site.options.own, Options, "delay")
    file = await site.child()
    node = DelayNode(
        site.name, file, options, site.graph.clock, filename=site.filename, read_only=site.read_only
    )
    await site.take(node, file, "file", Role.FILTERED)
    return node
