"""What a driver is given when one of its nodes is to be opened.

Owns: the request (how a whole tree is opened), the rules for parents, and the
site of one node. It opens nothing: `vblk.opening` fills it in and calls the
driver's `open_node`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from vblk.errors import OptionError
from vblk.graph.edge import Permission, Role
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.options import NodeOptions, NodeReference


@dataclass(frozen=True, slots=True)
class ChainRules:
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


@dataclass(frozen=True, slots=True)
class Request:
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

    async def child(self, key: str = "file") -> Node:
        """Open the child that the options name under `key`."""
        wanted = self.options.children.get(key)
        if wanted is None:
            raise OptionError(f'A block device must be specified for "{key}"')
        if isinstance(wanted, NodeReference):
            return self.graph.find(wanted.name)
        return await self.open(wanted, replace(self.request, read_only=self.read_only))

    async def take(self, node: Node, file: Node) -> Node:
        """Add a new parent node and its `file` to the graph, or close both."""
        try:
            self.graph.add(node)
            self.graph.attach(node, Role.FILE, file)
        except BaseException:
            await self.graph.discard_unused(node)
            await self.graph.discard_unused(file)
            raise
        return node
