"""Events inside a request, and the stops that a user can set at them.

Owns: the names of the events and the interface of whoever listens to them, so
that a filter above can tell a filter below what it is about to do. It knows no
filter.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable

from vblk.errors import StorageError
from vblk.graph.node import Node


class Event(enum.Enum):
    """The moments of requests that this version raises, under QEMU's names."""

    NONE = "none"
    READ_AIO = "read_aio"
    WRITE_AIO = "write_aio"
    PWRITEV = "pwritev"
    PWRITEV_ZERO = "pwritev_zero"
    PWRITEV_DONE = "pwritev_done"
    PWRITEV_RMW_HEAD = "pwritev_rmw_head"
    PWRITEV_RMW_AFTER_HEAD = "pwritev_rmw_after_head"
    PWRITEV_RMW_TAIL = "pwritev_rmw_tail"
    PWRITEV_RMW_AFTER_TAIL = "pwritev_rmw_after_tail"
    FLUSH_TO_OS = "flush_to_os"
    FLUSH_TO_DISK = "flush_to_disk"
    COR_WRITE = "cor_write"


class InjectedError(StorageError):
    """A request failed because somebody wanted it to."""


class EventListener(ABC):
    """A node that is told of events, and can stop requests at them."""

    @abstractmethod
    async def happened(self, event: Event) -> None:
        """Take note of an event; returns when the request may go on."""

    @abstractmethod
    def add_breakpoint(self, event: Event, tag: str) -> None:
        """Stop the next request that reaches `event`, under the name `tag`."""

    @abstractmethod
    def remove_breakpoint(self, tag: str) -> bool:
        """Forget the breakpoints of a tag and resume its requests; false: none was set."""

    @abstractmethod
    def resume(self, tag: str) -> bool:
        """Let the request that is stopped under `tag` go on; false: there is none."""

    @abstractmethod
    def resume_all(self) -> None:
        """Forget every breakpoint and let every request go on."""

    @abstractmethod
    async def wait_stopped(self, tag: str) -> None:
        """Return when a request is stopped under `tag`."""

    @abstractmethod
    def report_to(self, say: Callable[[str], None]) -> None:
        """Say in `say` which requests stop and go on."""


def find_listener(node: Node | None) -> EventListener | None:
    """Return the first listener from `node` down to its storage."""
    while node is not None:
        if isinstance(node, EventListener):
            return node
        node = node.below
    return None
