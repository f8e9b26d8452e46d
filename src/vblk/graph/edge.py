"""Edges: who uses a node, as what, and what that forbids to others.

Owns: roles, permissions, and the rule that two users of one node must agree.
The permission bits are those of QEMU, so that the file leaf can publish them as
byte-range locks that QEMU reads.
"""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vblk.graph.node import Node


class Role(enum.Enum):
    """The part that a child plays for its parent."""

    FILE = "file"
    BACKING = "backing"


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


@dataclass(slots=True, eq=False)
class Edge:
    """One use of `node` by `user` (a sentence's noun), with its permissions.

    `parent` is the user where that is a node of the graph.
    """

    node: "Node"
    user: str
    role: Role | None
    permissions: Permission
    shared: Permission
    parent: "Node | None" = None
