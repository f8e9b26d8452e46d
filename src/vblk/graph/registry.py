"""The graph: named nodes, the edges between them, and the handles of their users.

Owns: names, permissions of all edges, who closes what and in which order, and
drain across the graph. It knows no driver; `vblk.opening` makes the nodes.

Ordering rule: a parent is closed before its children; a node lives exactly as
long as it has a user. Closing and reopening exclude each other, and neither is
cut in half by a cancellation.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from vblk.aio.engine import Engine
from vblk.aio.threads import ThreadEngine
from vblk.errors import BlockError, Cycle, GraphError, PermissionConflict
from vblk.graph.edge import READING, SHARED_BY_READER, SHARED_BY_WRITER, WRITING, Edge, Permission, Role
from vblk.graph.gate import BesideGate, OpenGate
from vblk.graph.handle import Handle, Traffic
from vblk.graph.node import Node
from vblk.graph.secrets import Secrets
from vblk.runtime.uninterrupted import to_the_end

DEPTH_MAX = 256
"""The most images in one backing chain."""


@dataclass(slots=True, eq=False)
class _Drain:
    """A drain under way: below `node` everything is held; so are users that come now."""

    node: Node
    held: list[Traffic] = field(default_factory=list[Traffic])

    def hold(self, handle: Handle) -> None:
        handle.traffic.hold()
        self.held.append(handle.traffic)


class Graph:
    """A set of named nodes that belong to one event loop.

    `engine` runs what would block; `gate` decides which files that images name
    may be opened; `secrets` are what unlocks encrypted ones. Close the graph, or
    use it in `async with`: every node is closed then, parents first.
    """

    def __init__(
        self, engine: Engine | None = None, gate: OpenGate | None = None, secrets: Secrets | None = None
    ) -> None:
        self.engine = engine if engine is not None else ThreadEngine()
        self.secrets = secrets if secrets is not None else Secrets()
        self.gate = gate if gate is not None else BesideGate()
        self._nodes: dict[str, Node] = {}
        self._users: dict[Node, list[Edge]] = {}
        self._handles: list[Handle] = []
        self._drains: list[_Drain] = []
        self._changing = asyncio.Lock()
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
        self._users[node] = []

    def find(self, name: str) -> Node:
        """Return the node of that name."""
        try:
            return self._nodes[name]
        except KeyError:
            raise GraphError(f"Cannot find device='' nor node-name='{name}'") from None

    def nodes(self) -> Iterator[Node]:
        """Iterate over all nodes, the oldest first."""
        return iter(list(self._nodes.values()))

    def handles(self) -> Iterator[Handle]:
        """Iterate over the handles of all users outside the graph."""
        return iter(list(self._handles))

    def users(self, node: Node) -> list[Edge]:
        """Return the edges that lead to a node."""
        return list(self._users.get(node, ()))

    def attach(self, parent: Node, role: Role, child: Node) -> Edge:
        """Make `child` play `role` for `parent`, with the permissions that follow.

        Raises:
            PermissionConflict: Another user of the child excludes this one.
            ReadOnly: The parent is for writing and the child is not.
            Cycle: The child reaches the parent, or the chain grows too deep.
            GraphError: The child is not in this graph (any more).
        """
        assert role.value not in parent.children, "the role is taken"
        self._refuse_cycle(parent, role, child)
        permissions, shared = _access_of(role, parent.read_only)
        user = f"node '{parent.name}' ({parent.filename}) as its {role.value}"
        edge = Edge(child, user, role, permissions, shared, parent)
        self._add_edge(edge)
        parent.children[role.value] = edge
        return edge

    def hold(
        self, node: Node, user: str, permissions: Permission = READING, shared: Permission = Permission.ALL
    ) -> Handle:
        """Return a handle for a user outside the graph.

        Raises:
            PermissionConflict: Another user of the node excludes this one.
            ReadOnly: The user wants to write, and the node is for reading only.
            GraphError: The node is not in this graph (any more).
        """
        edge = Edge(node, user, None, permissions, shared)
        self._add_edge(edge)
        handle = Handle(edge)
        self._handles.append(handle)
        below = self.reachable(node)
        for drain in self._drains:
            if drain.node in below:
                drain.hold(handle)
        return handle

    async def release(self, handle: Handle) -> None:
        """Let go of a handle, when its requests have ended; close what nobody uses now.

        Idempotent. Cancellation: while requests are waited for, the handle
        stays as it was.
        """
        if handle.closed:
            return
        await handle.traffic.drain()
        try:
            if handle not in self._handles:
                return  # somebody else let go of it meanwhile
            handle.detach()
            self._handles.remove(handle)
        finally:
            handle.traffic.release()
        await to_the_end(self._drop_edge(handle.edge))

    async def discard_unused(self, node: Node) -> None:
        """Close a node that never got a user, as after a failed open."""
        await to_the_end(self._close_unused([node]))

    async def reopen(self, node: Node, *, read_only: bool) -> None:
        """Change a node and its `file` children between reading only and writing.

        Nothing is in flight meanwhile. When a child refuses, what was changed
        already is changed back. The handles on `node` itself take on the new
        access.

        Raises:
            PermissionConflict: A user of one of the nodes excludes writing, or
                writes where writing is to end.

        Cancellation: a change that has begun is finished, or taken back, first.
        """
        async with self.drained(node), self._changing:
            members = [member for member in self._file_path(node) if member.read_only != read_only]
            changes = self._plan_access(node, members, read_only)
            self._refuse_reopen(members, changes, read_only)
            await to_the_end(_reopen_all(members, changes, read_only))

    @asynccontextmanager
    async def drained(self, node: Node) -> AsyncGenerator[None, None]:
        """Hold back all requests that could reach `node` while the block runs."""
        drain = _Drain(node)
        self._drains.append(drain)
        try:
            for handle in self._handles:
                if node in self.reachable(handle.node):
                    drain.hold(handle)
            for traffic in drain.held:
                await traffic.quiet()
            yield
        finally:
            self._drains.remove(drain)
            for traffic in drain.held:
                traffic.release()

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
        """Let go of every handle, close every node, end the engine.

        Everything is closed even when some of it fails; the first failure is
        raised then. Cancellation: while requests are waited for, nothing is
        closed yet that they need.
        """
        failures: list[BaseException] = []
        for handle in list(self._handles):
            try:
                await self.release(handle)
            except BlockError as error:
                failures.append(error)
        await to_the_end(self._close_rest(failures))

    async def _close_rest(self, failures: list[BaseException]) -> None:
        try:
            await self._close_unused(list(self._nodes.values()))
        except BaseException as error:
            failures.append(error)
        finally:
            await self.engine.close()
        if failures:
            raise failures[0]

    def _file_path(self, node: Node) -> Iterator[Node]:
        member: Node | None = node
        while member is not None:
            yield member
            member = member.child(Role.FILE)

    def _refuse_cycle(self, parent: Node, role: Role, child: Node) -> None:
        if parent in self.reachable(child):
            raise Cycle(f"Making '{child.filename}' a child of '{parent.filename}' would create a cycle")
        if role is Role.BACKING and self._images_above(parent) + _images_below(child) > DEPTH_MAX:
            raise Cycle(f"the backing chain has more than {DEPTH_MAX} images", filename=parent.filename)

    def _images_above(self, node: Node) -> int:
        """Count the images of the longest chain from a top down to `node`, itself included."""
        count = 0
        level = {node}
        while level and count <= DEPTH_MAX:
            count += 1
            level = {
                edge.parent
                for member in level
                for edge in self._users.get(member, ())
                if edge.role is Role.BACKING and edge.parent is not None
            }
        return count

    def _add_edge(self, edge: Edge) -> None:
        users = self._users.get(edge.node)
        if users is None:
            raise GraphError(f"'{edge.node.filename}' is not in the graph", filename=edge.node.filename)
        if edge.permissions & Permission.WRITE:
            edge.node.require_writable()
        for other in users:
            _refuse_conflict(edge, other)
        users.append(edge)

    async def _drop_edge(self, edge: Edge) -> None:
        self._users[edge.node].remove(edge)
        await self._close_unused([edge.node])

    async def _close_unused(self, nodes: Sequence[Node]) -> None:
        """Close those of `nodes` that nobody uses, then what nobody uses after that."""
        failures: list[BaseException] = []
        async with self._changing:
            waiting = list(nodes)
            while waiting:
                node = waiting.pop()
                if self._users.get(node, True):
                    continue  # in use, or not ours (any more)
                del self._nodes[node.name], self._users[node]
                try:
                    await node.close()
                except BaseException as error:
                    failures.append(error)
                for edge in node.children.values():
                    self._users[edge.node].remove(edge)
                    waiting.append(edge.node)
                node.children.clear()
        if failures:
            raise failures[0]

    def _plan_access(self, top: Node, members: Sequence[Node], read_only: bool) -> dict[Edge, Edge]:
        """Return the edges whose permissions a reopen changes, each with how it will be."""
        changes: dict[Edge, Edge] = {}
        for member in members:
            for edge in member.children.values():
                assert edge.role is not None
                permissions, shared = _access_of(edge.role, read_only)
                changes[edge] = replace(edge, permissions=permissions, shared=shared)
        for edge in self._users.get(top, ()):
            if edge.role is None:
                changes[edge] = replace(edge, permissions=READING if read_only else WRITING)
        return changes

    def _refuse_reopen(self, members: Sequence[Node], changes: dict[Edge, Edge], read_only: bool) -> None:
        for member in members:
            users = [changes.get(edge, edge) for edge in self._users.get(member, ())]
            for number, edge in enumerate(users):
                if read_only and edge.permissions & Permission.WRITE:
                    raise PermissionConflict(
                        f"'{member.filename}' cannot become read-only: {edge.user} writes to it",
                        filename=member.filename,
                    )
                for other in users[:number]:
                    _refuse_conflict(edge, other)


async def _reopen_all(members: Sequence[Node], changes: dict[Edge, Edge], read_only: bool) -> None:
    """Reopen nodes, given from the top down, and publish what their users may do then.

    To write, storage comes before what stands on it; to end writing, a format
    finishes before its storage. Permissions are there before they are used, and
    go after their last use.
    """
    before = {edge: replace(edge) for edge in changes}
    if not read_only:
        _publish(changes)
    changed: list[Node] = []
    try:
        for member in members if read_only else reversed(members):
            await member.reopen(read_only=read_only)
            changed.append(member)
    except BaseException:
        for member in reversed(changed):
            await _change_back(member, read_only=not read_only)
        _publish(before)
        raise
    _publish(changes)


async def _change_back(node: Node, *, read_only: bool) -> None:
    try:
        await node.reopen(read_only=read_only)
    except BlockError as error:
        node.warnings.append(f"its access could not be changed back: {error}")


def _publish(changes: dict[Edge, Edge]) -> None:
    for edge, wanted in changes.items():
        edge.permissions, edge.shared = wanted.permissions, wanted.shared


def _access_of(role: Role, read_only: bool) -> tuple[Permission, Permission]:
    """Return what a parent does with a child, and what it lets others do."""
    if role is Role.FILE and not read_only:
        return WRITING, SHARED_BY_WRITER
    return READING, SHARED_BY_READER


def _images_below(node: Node) -> int:
    """Count the images of the chain from `node` down, itself included."""
    count = 0
    member: Node | None = node
    while member is not None:
        count += 1
        member = member.child(Role.BACKING)
    return count


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
