"""The graph: named nodes, the edges between them, and the handles of their users.

Owns: names, permissions of all edges, who closes what and in which order, and
drain across the graph. It knows no driver; `vblk.opening` makes the nodes.

Ordering rule: a parent is closed before its children; a node lives exactly as
long as it has a user.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from vblk.aio.engine import Engine
from vblk.aio.threads import ThreadEngine
from vblk.errors import Cycle, GraphError, PermissionConflict
from vblk.graph.edge import READING, SHARED_BY_READER, SHARED_BY_WRITER, WRITING, Edge, Permission, Role
from vblk.graph.gate import BesideGate, OpenGate
from vblk.graph.handle import Handle
from vblk.graph.node import Node

DEPTH_MAX = 256
"""The most images in one backing chain."""


class Graph:
    """A set of named nodes that belong to one event loop.

    `engine` runs what would block; `gate` decides which files that images name
    may be opened. Close the graph, or use it in `async with`: every node is
    closed then, parents first.
    """

    def __init__(self, engine: Engine | None = None, gate: OpenGate | None = None) -> None:
        self.engine = engine if engine is not None else ThreadEngine()
        self.gate = gate if gate is not None else BesideGate()
        self._nodes: dict[str, Node] = {}
        self._users: dict[str, list[Edge]] = {}
        self._handles: list[Handle] = []
        self._numbered = 0

    async def __aenter__(self) -> "Graph":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def unique_name(self) -> str:
        """Return a name for a node that the user did not name."""
        self._numbered += 1
        return f"#block{self._numbered:03d}"

    def add(self, node: Node) -> None:
        """Take a node in; it lives until its last user lets go.

        Raises:
            GraphError: Another node has its name.
        """
        if node.name in self._nodes:
            raise GraphError(f"Duplicate nodes with node-name='{node.name}'")
        self._nodes[node.name] = node
        self._users[node.name] = []

    def find(self, name: str) -> Node:
        """Return the node of that name."""
        try:
            return self._nodes[name]
        except KeyError:
            raise GraphError(f"Cannot find device='' nor node-name='{name}'") from None

    def nodes(self) -> Iterator[Node]:
        """Iterate over all nodes, the oldest first."""
        return iter(list(self._nodes.values()))

    def users(self, node: Node) -> list[Edge]:
        """Return the edges that lead to a node."""
        return list(self._users.get(node.name, ()))

    def attach(self, parent: Node, role: Role, child: Node) -> Edge:
        """Make `child` play `role` for `parent`, with the permissions that follow.

        Raises:
            PermissionConflict: Another user of the child excludes this one.
            Cycle: The child reaches the parent, or the chain grows too deep.
        """
        self._refuse_cycle(parent, child)
        writing = role is Role.FILE and not parent.read_only
        edge = Edge(
            child,
            f"node '{parent.name}' ({parent.filename}) as its {role.value}",
            role,
            WRITING if writing else READING,
            SHARED_BY_WRITER if writing else SHARED_BY_READER,
        )
        self._add_edge(edge)
        parent.children[role.value] = edge
        return edge

    def hold(
        self, node: Node, user: str, permissions: Permission = READING, shared: Permission = Permission.ALL
    ) -> Handle:
        """Return a handle for a user outside the graph.

        Raises:
            PermissionConflict: Another user of the node excludes this one.
        """
        edge = Edge(node, user, None, permissions, shared)
        self._add_edge(edge)
        handle = Handle(edge)
        self._handles.append(handle)
        return handle

    async def release(self, handle: Handle) -> None:
        """Let go of a handle, when its requests have ended; close what nobody uses now."""
        if handle.closed:
            return
        await handle.traffic.drain()
        edge = handle.edge
        handle.detach()
        handle.traffic.release()
        self._handles.remove(handle)
        await self._drop_edge(edge)

    async def discard_unused(self, node: Node) -> None:
        """Close a node that never got a user, as after a failed open."""
        if not self._users.get(node.name) and node.name in self._nodes:
            await self._close_node(node)

    async def reopen(self, node: Node, *, read_only: bool) -> None:
        """Change a node and its `file` children between reading only and writing.

        Nothing is in flight meanwhile. When a child refuses, what was changed
        already is changed back.

        Raises:
            PermissionConflict: A user of one of the nodes excludes writing.
        """
        async with self.drained(node):
            changed: list[Node] = []
            try:
                for member in reversed(list(self._file_path(node))):
                    if member.read_only != read_only:
                        self._check_reopen(member, read_only)
                        await member.reopen(read_only=read_only)
                        changed.append(member)
            except BaseException:
                for member in reversed(changed):
                    await member.reopen(read_only=not read_only)
                raise
            for member in changed:
                self._refresh_permissions(member)

    @asynccontextmanager
    async def drained(self, node: Node) -> AsyncIterator[None]:
        """Hold back all requests that could reach `node` while the block runs."""
        async with AsyncExitStack() as stack:
            for handle in list(self._handles):
                if not handle.closed and node in self.reachable(handle.node):
                    await stack.enter_async_context(handle.drained())
            yield

    def reachable(self, node: Node) -> list[Node]:
        """Return `node` and everything below it, each once."""
        seen: dict[int, Node] = {}
        stack = [node]
        while stack:
            member = stack.pop()
            if id(member) not in seen:
                seen[id(member)] = member
                stack.extend(edge.node for edge in member.children.values())
        return list(seen.values())

    async def close(self) -> None:
        """Let go of every handle, close every node, end the engine."""
        try:
            for handle in list(self._handles):
                await self.release(handle)
            for node in list(self._nodes.values()):
                await self.discard_unused(node)
        finally:
            await self.engine.close()

    def _file_path(self, node: Node) -> Iterator[Node]:
        member: Node | None = node
        while member is not None:
            yield member
            member = member.child(Role.FILE)

    def _refuse_cycle(self, parent: Node, child: Node) -> None:
        if parent in self.reachable(child):
            raise Cycle(f"Making '{child.filename}' a child of '{parent.filename}' would create a cycle")
        depth = 0
        member: Node | None = child
        while member is not None:
            depth += 1
            if depth >= DEPTH_MAX:
                raise Cycle(f"the backing chain has more than {DEPTH_MAX} images", filename=parent.filename)
            member = member.child(Role.BACKING)

    def _add_edge(self, edge: Edge) -> None:
        for other in self._users[edge.node.name]:
            _refuse_conflict(edge, other)
        self._users[edge.node.name].append(edge)

    async def _drop_edge(self, edge: Edge) -> None:
        users = self._users[edge.node.name]
        users.remove(edge)
        if not users:
            await self._close_node(edge.node)

    async def _close_node(self, node: Node) -> None:
        self._nodes.pop(node.name, None)
        self._users.pop(node.name, None)
        edges = list(node.children.values())
        try:
            await node.close()
        finally:
            node.children.clear()
            for edge in edges:
                await self._drop_edge(edge)

    def _check_reopen(self, node: Node, read_only: bool) -> None:
        if read_only:
            return
        for edge in self._users[node.name]:
            if not edge.shared & Permission.WRITE and len(self._users[node.name]) > 1:
                raise PermissionConflict(
                    f"'{node.filename}' cannot be opened for writing: {edge.user} forbids writing",
                    filename=node.filename,
                )

    def _refresh_permissions(self, node: Node) -> None:
        for role, edge in node.children.items():
            writing = role == Role.FILE.value and not node.read_only
            edge.permissions = WRITING if writing else READING
            edge.shared = SHARED_BY_WRITER if writing else SHARED_BY_READER


def _refuse_conflict(new: Edge, old: Edge) -> None:
    wanted = new.permissions & ~old.shared
    refused = old.permissions & ~new.shared
    if wanted:
        raise PermissionConflict(
            f"{new.user} needs {_names(wanted)} on '{new.node.filename}', which {old.user} forbids",
            filename=new.node.filename,
        )
    if refused:
        raise PermissionConflict(
            f"{new.user} forbids {_names(refused)} on '{new.node.filename}', which {old.user} uses",
            filename=new.node.filename,
        )


def _names(permissions: Permission) -> str:
    return ", ".join(f'"{(bit.name or "").lower().replace("_", "-")}"' for bit in permissions)
