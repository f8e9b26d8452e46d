"""Edges: who uses a node, as what, and what that forbids to others.

Owns: roles, permissions, and what each role asks for. That two users of one node
must agree is `vblk.graph.edges`'s to see to. The permission bits are those of
QEMU, so that the file leaf can publish them as byte-range locks that QEMU reads.
"""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vblk.graph.node import Node


class Role(enum.Enum):
    """The part that a child plays for its parent.

    FILE stores what the parent is made of, BACKING has what the parent has not,
    FILTERED is what the parent decorates: the parent does with it what its own
    users do with the parent. TARGET takes bytes that the parent is about to lose,
    ACCESSED is a filter that the parent asks for more than its requests.
    """

    FILE = "file"
    BACKING = "backing"
    FILTERED = "filtered"
    TARGET = "target"
    ACCESSED = "accessed"


class Permission(enum.IntFlag):
    """What a user of a node does, or lets others do."""

    NONE = 0
    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8
    ALL = 15


READING = Permission.CONSISTENT_READ
WRITING = Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE
SHARED_BY_READER = Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED
SHARED_BY_WRITER = Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED


class Access(NamedTuple):
    """What a user does with a node, and what it lets others do meanwhile."""

    permissions: Permission
    shared: Permission


IDLE = Access(Permission.NONE, Permission.ALL)
"""What a filter without users does with its child: nothing."""


@dataclass(slots=True, eq=False)
class Edge:
    """One use of `node` by `user` (a sentence's noun), with its permissions.

    `parent` is the user where that is a node of the graph, and `name` what it
    calls this child, under QEMU's name for it. An edge that is `frozen` is not led
    elsewhere: somebody counts on it. One to a backing image that `is_loose` goes by
    the parent's users: without any it is idle; while they read only, and let others
    write, it lets the backing image be written to, as QEMU does.
    """

    node: "Node"
    user: str
    role: Role | None
    permissions: Permission
    shared: Permission
    parent: "Node | None" = None
    name: str = ""
    frozen: bool = False
    is_loose: bool = False

    @property
    def access(self) -> Access:
        """What this use does and allows."""
        return Access(self.permissions, self.shared)

    @access.setter
    def access(self, access: Access) -> None:
        self.permissions, self.shared = access


def access_of(role: Role, *, read_only: bool) -> Access:
    """Return what a parent that is open for reading only, or not, does with a child."""
    if role in (Role.FILTERED, Role.ACCESSED):
        return IDLE  # a filter's child: until it has users
    if role is Role.TARGET:
        return Access(Permission.WRITE, Permission.ALL & ~Permission.RESIZE)
    if role is Role.FILE and not read_only:
        return Access(WRITING, SHARED_BY_WRITER)
    return Access(READING, SHARED_BY_READER)


def edge_of(parent: "Node", role: Role, child: "Node", name: str = "") -> Edge:
    """Return the edge that would make `child` play `role` for `parent`, which calls it `name`."""
    name = name or role.value
    assert name not in parent.children, "the role is taken"
    user = f"node '{parent.name}' ({parent.filename}) as its {name}"
    permissions, shared = access_of(role, read_only=parent.read_only)
    return Edge(child, user, role, permissions, shared, parent, name)
