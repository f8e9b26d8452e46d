"""What a driver is given when one of its nodes is to be opened.

Owns: the request (how a whole tree is opened), the rules for parents, and the
site of one node. It opens nothing: `vblk.opening` fills it in and calls the
driver's `open_node`.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from vblk.errors import BlockError, OptionError
from vblk.graph.edge import Permission, Role
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.options import NodeOptions, NodeReference


class ChainRules(NamedTuple):
    r"""What a user says about the parents of an image.

    `parent` is the top image's parent, in place of what the image names.
    `parent_dirs` are searched, and trusted as if they were the image's own.
    `path_map` turns Windows paths into local ones: ("D:\\", "/mnt/d").
    `ignore_linkage` accepts a parent whose identity does not match. `strict`
    refuses images whose log would have to be replayed.
    """

    parent: str | None = None
    parent_dirs: tuple[str, ...] = ()
    path_map: tuple[tuple[str, str], ...] = ()
    ignore_linkage: bool = False
    strict: bool = False


class Request(NamedTuple):
    """How a whole tree is to be opened, unless its options say otherwise."""

    read_only: bool = True
    cache: str = "writeback"
    force_share: bool = False
    backing: bool = True
    rules: ChainRules = ChainRules()


OpenNode = Callable[[NodeOptions, Request], Awaitable[Node]]


@dataclass(slots=True)
class Site:
    """The place of a node that is about to be opened.

    `permissions` and `shared` are those of the edge that will lead to the node;
    a leaf publishes them to other processes. `probed` says that the format was
    guessed from the image's bytes.

    A driver that fails may simply raise: `vblk.opening` then closes what was
    opened through the site.
    """

    graph: Graph
    options: NodeOptions
    request: Request
    open: OpenNode
    name: str
    filename: str
    read_only: bool
    permissions: Permission
    shared: Permission
    probed: bool = False
    _opened: list[Node] = field(default_factory=list[Node])

    async def child(self, key: str = "file") -> Node:
        """Open the child that the options name under `key`, or find the node that they refer to.

        What backs an image is open for reading only, unless it is said of it.
        """
        wanted = self.options.children.get(key)
        if wanted is None:
            raise OptionError(f'A block device must be specified for "{key}"')
        if isinstance(wanted, NodeReference):
            return self.graph.find(wanted.name)
        read_only = self.read_only or key == Role.BACKING.value
        node = await self.open(wanted, self.request._replace(read_only=read_only))
        self._opened.append(node)
        return node

    async def take(self, node: Node, child: Node, key: str = "file", role: Role = Role.FILE) -> Node:
        """Add a new parent node to the graph and attach a child under the name `key`.

        Raises:
            GraphError: Another node has its name, or the file may not be used so.
        """
        try:
            self.graph.add(node)
        except BaseException:
            await node.close()
            raise
        self._opened.append(node)
        self.graph.attach(node, role, child, key)
        return node

    async def attach_backing(self, node: Node) -> None:
        """Let a node stand on what the options name under `backing`.

        Raises: as `Graph.attach`.
        """
        backing = await self.child(Role.BACKING.value)
        is_reference = isinstance(self.options.children[Role.BACKING.value], NodeReference)
        self.graph.attach(node, Role.BACKING, backing, is_loose=is_reference)

    async def abandon(self) -> None:
        """Close what was opened through this site and got no user, parents first.

        What fails meanwhile is of no interest: why the open failed is.
        """
        for node in reversed(self._opened):
            with suppress(BlockError):
                await self.graph.discard_unused(node)
