"""Limits on what passes a node, shared with others of a group: QEMU's `throttle`.

Owns: which requests count, and as what. When they may pass is the group's to say
(`vblk.runtime.throttling`).

Ordering rule: a request counts before it is made; a drain lets everything pass at
once, so that it does not wait for the limits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.filters.passing import PassingNode
from vblk.graph.edge import Role
from vblk.graph.node import Buffer, Node
from vblk.graph.objects import Objects
from vblk.graph.site import Site
from vblk.options import Scalar, bind, check_children
from vblk.runtime.throttling import ThrottleGroup

_IS_WRITE = {"read": False, "write": True, "write-zeroes": True, "discard": True}


@dataclass(slots=True)
class Options:
    """`throttle_group` is the id of the group whose limits count."""

    throttle_group: str


class ThrottleNode(PassingNode):
    """A node whose requests wait until the limits of its group let them pass."""

    driver: ClassVar[str] = "throttle"
    changeable: ClassVar[frozenset[str]] = frozenset(("throttle-group",))

    def __init__(self, name: str, file: Node, group: ThrottleGroup, **how: Any) -> None:
        """Stand over `file`, as a member of the group until the node is closed."""
        super().__init__(name, file, **how)
        self.group = group
        self._member = group.join()

    async def before(self, operation: str, offset: int, length: int) -> None:
        """Wait for the limits."""
        write = _IS_WRITE.get(operation)
        if write is not None:
            await self.group.pass_through(self._member, length, write=write)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Read at once what the limits let pass at once."""
        if not self.group.may_pass(self._member, write=False):
            return None
        data = super().try_read(offset, length)
        if data is not None:
            self.group.passed(length, write=False)
        return data

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once what the limits let pass at once."""
        self.require_writable()
        if not self.group.may_pass(self._member, write=True) or not self.file.try_write(offset, data):
            return False
        self.group.passed(len(data), write=True)
        return True

    def hurry(self) -> None:
        """Let everything pass, what waits as well."""
        super().hurry()
        self._member.hurry()

    def heed(self) -> None:
        """Heed the limits again."""
        super().heed()
        self._member.heed()

    def prepare_options(self, objects: Objects, own: Mapping[str, Scalar]) -> Callable[[], None]:
        """Find another group, to be joined."""
        group = objects.throttle_group(bind(own, Options, "throttle").throttle_group)

        def join() -> None:
            self.group.leave(self._member)
            self.group, self._member = group, group.join()
            self._member.free = self.hurried  # by a drain that began before, and ends later

        return join

    async def close(self) -> None:
        """Leave the group. Idempotent."""
        self.group.leave(self._member)


async def open_node(site: Site) -> ThrottleNode:
    """Open the node under the key `file`, and let its requests pass the group.

    Raises:
        OptionError: There is no such group.
    """
    check_children(site.options, "throttle", "file")
    options = bind(site.options.own, Options, "throttle")
    group = site.graph.objects.throttle_group(options.throttle_group)
    file = await site.child()
    node = ThrottleNode(site.name, file, group, filename=site.filename, read_only=site.read_only)
    await site.take(node, file, "file", Role.FILTERED)
    return node
