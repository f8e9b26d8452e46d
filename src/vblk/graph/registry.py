"""The graph: named nodes, the edges between them, and the handles of their users.

Owns: names, who closes what and in which order, and drain across the graph. Who
may use what is `vblk.graph.edges`; what changes a graph that is in use,
`vblk.graph.surgery` and `vblk.graph.reopening`. It knows no driver; `vblk.opening`
makes the nodes.

Ordering rule: a parent is closed before its children; a node lives exactly as
long as it has a user or is kept. Closing, reopening and surgery exclude each
other, and none is cut in half by a cancellation.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vblk.aio.clock import Clock, LoopClock
from vblk.aio.engine import Engine
from vblk.aio.fd_sets import FdSets
from vblk.aio.threads import ThreadEngine
from vblk.errors import BlockError, GraphError, NodeBusy
from vblk.graph.edge import READING, Edge, Permission, Role, edge_of
from vblk.graph.edges import Edges, Rewiring, reachable
from vblk.graph.gate import BesideGate, OpenGate
from vblk.graph.handle import Handle, Traffic
from vblk.graph.node import Node
from vblk.graph.objects import Objects
from vblk.runtime.uninterrupted import to_the_end

if TYPE_CHECKING:
    from vblk.graph.reopening import NodeChange


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
    may be opened; `objects` are what options refer to by ids; `clock` is what
    nodes wait on. `fd_sets` are descriptors that files may be opened from.
    `listeners` are told of events, under QEMU's names and with its data.
    Close the graph, or use it in `async with`: every node is closed then, parents first.
    """

    def __init__(
        self, engine: Engine | None = None, gate: OpenGate | None = None, objects: Objects | None = None
    ) -> None:
        self.engine = engine if engine is not None else ThreadEngine()
        self._bulk: Engine | None = None
        self.objects = objects if objects is not None else Objects()
        self.gate = gate if gate is not None else BesideGate()
        self._nodes: dict[str, Node] = {}
        self.clock: Clock = LoopClock()
        self.listeners: list[Callable[[str, Mapping[str, Any]], None]] = []
        self.fd_sets = FdSets()
        self.edges = Edges()
        self._kept: set[Node] = set()
        self._pins: list[tuple[Node, str]] = []
        self._led: list[tuple[Node, Node]] = []
        self._handles: list[Handle] = []
        self._drains: list[_Drain] = []
        self._changing = asyncio.Lock()
        self._numbered = 0

    async def __aenter__(self) -> "Graph":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def bulk_engine(self) -> Engine:
        """What runs the calls of a job that copies much beside a guest, who comes first."""
        if self._bulk is None:
            self._bulk = self.engine.for_bulk()
        return self._bulk

    def unique_name(self) -> str:
        """Return a name for a node that the user did not name."""
        self._numbered += 1
        return f"#block{self._numbered:03d}"

    def report(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell the listeners of an event."""
        for listener in self.listeners:
            listener(event, data)

    def add(self, node: Node) -> None:
        """Take a node in; it lives until its last user, or who keeps it, lets go.

        Raises:
            GraphError: Another node has its name.
        """
        if node.name in self._nodes:
            raise GraphError(f"Duplicate nodes with node-name='{node.name}'")
        self._nodes[node.name] = node
        self.edges.admit(node)

    def find(self, name: str) -> Node:
        """Return the node of that name."""
        try:
            return self._nodes[name]
        except KeyError:
            raise GraphError(f"Cannot find device='{name}' nor node-name='{name}'") from None

    def nodes(self) -> Iterator[Node]:
        """Iterate over all nodes, the oldest first."""
        return iter(list(self._nodes.values()))

    def handles(self) -> Iterator[Handle]:
        """Iterate over the handles of all users outside the graph."""
        return iter(list(self._handles))

    def users(self, node: Node) -> list[Edge]:
        """Return the edges that lead to a node."""
        return self.edges.to(node)

    def attach(
        self, parent: Node, role: Role, child: Node, name: str = "", *, is_loose: bool = False
    ) -> Edge:
        """Make `child` play `role` for `parent`, with the permissions that follow.

        `name` is what the parent calls the child, where it is not the role's name. `is_loose`: see
        `Edge`.

        Raises:
            PermissionConflict: Another user of the child excludes this one.
            ReadOnly: The parent is for writing and the child is not.
            Cycle: The child reaches the parent, or the chain grows too deep.
            GraphError: The child is not in this graph (any more).
        """
        edge = edge_of(parent, role, child, name)
        edge.is_loose = is_loose
        self.rewire(Rewiring(added=[edge]))
        return edge

    def rewire(self, rewiring: Rewiring, *, as_if: Mapping[Node, bool] | None = None) -> Rewiring:
        """Change edges, tell everybody whose edges they are, and return what changes them back.

        Where an edge is led elsewhere nothing may be in flight.

        Raises: as `Edges.apply`.
        """
        inverse = self.edges.apply(rewiring, as_if=as_if)
        self._tell(rewiring)
        return inverse

    def restore(self, inverse: Rewiring) -> None:
        """Change edges back to what was right before; it cannot fail."""
        self.edges.restore(inverse)
        self._tell(inverse)

    def _tell(self, rewiring: Rewiring) -> None:
        for edge in rewiring.removed:
            if edge.parent is not None:
                edge.parent.child_left(edge)
        for edge in (*rewiring.moved, *rewiring.added):
            if edge.parent is not None:
                edge.parent.child_changed(edge)
        for handle in self._handles if rewiring.moved else ():
            if handle.edge in rewiring.moved:
                handle.follow()
        for drain in self._drains:  # whoever reaches its node only now is quiet: the change was under a drain
            self._hold_reaching(drain)

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
        self.rewire(Rewiring(added=[edge]))
        handle = Handle(edge)
        self._handles.append(handle)
        for drain in self._drains:
            self._hold_reaching(drain)
        return handle

    def keep(self, node: Node) -> None:
        """Let a node live without users, until `let_go`; it takes no permissions. Idempotent.

        Raises:
            GraphError: The node is not in this graph (any more).
        """
        if node not in self.edges:
            raise GraphError(f"'{node.filename}' is not in the graph", filename=node.filename)
        self._kept.add(node)

    def keeps(self, node: Node) -> bool:
        """Tell whether a node lives without users."""
        return node in self._kept

    @contextmanager
    def pinned(self, node: Node, why: str) -> Generator[None, None, None]:
        """Let no surgery lead all users of a node elsewhere, and no user resize it, while the block runs.

        For whoever counts on seeing every change of the disk at this node; `why` is told
        to those who are refused, as `require_unpinned` has it.
        """
        pin = (node, why)
        self._pins.append(pin)
        try:
            yield
        finally:
            self._pins.remove(pin)

    @contextmanager
    def leading(self, source: Node, target: Node) -> Generator[None, None, None]:
        """Let a drain of `target` hold back who reaches `source`, too, while the block runs.

        For whoever passes on what is asked of `source`: a request to it then counts as
        one to `target`, and needs no further leave.
        """
        link = (source, target)
        self._led.append(link)
        for drain in self._drains:
            self._hold_reaching(drain)
        try:
            yield
        finally:
            self._led.remove(link)

    def _concerned(self, node: Node) -> list[Node]:
        """Return all nodes that a request to `node` may come to."""
        nodes = reachable(node)
        for _ in self._led:  # a target may be a source as well
            for source, target in self._led:
                if source in nodes and target not in nodes:
                    nodes += reachable(target)
        return nodes

    @contextmanager
    def _hurried(self, handles: Sequence[Handle]) -> Generator[None, None, None]:
        """Let nothing that the handles' requests come to hold them back while the block waits for them."""
        nodes = {node for handle in handles for node in self._concerned(handle.node)}
        for node in nodes:
            node.hurry()
        try:
            yield
        finally:
            for node in nodes:
                node.heed()

    def require_unpinned(self, node: Node, above: Node | None = None) -> None:
        """Raise NodeBusy when somebody counts on a node or on one that it decorates, down to `above`."""
        member: Node | None = node
        while member is not None and member is not above:
            for pinned, why in self._pins:
                if pinned is member:
                    raise NodeBusy(f"Node '{member.name}' is busy: {why}")
            member = member.child(Role.FILTERED)

    async def let_go(self, node: Node) -> None:
        """End what `keep` began, and close the node.

        Raises:
            GraphError: Nobody keeps it.
            NodeBusy: Somebody uses it; it is kept.

        Cancellation: what is closed is closed to the end.
        """
        if node not in self._kept:
            raise GraphError(f"Node {node.name} is not owned by the monitor")
        users = self.edges.to(node)
        if users:
            self.require_unpinned(node)
            noun = "Block device" if all(edge.parent is not None for edge in users) else "Node"
            raise NodeBusy(f"{noun} {node.name} is in use")
        self._kept.discard(node)
        await self.discard_unused(node)

    async def release(self, handle: Handle) -> None:
        """Let go of a handle, when its requests have ended; close what nobody uses now.

        Idempotent. Cancellation: while requests are waited for, the handle
        stays as it was.
        """
        if handle.closed:
            return
        with self._hurried([handle]):
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

    async def reopen(self, node: Node, *, read_only: bool, handles: bool = True) -> None:
        """Change a node and what stores it between reading only and writing.

        Nothing is in flight meanwhile. When a child refuses, what was changed
        already is changed back. With `handles` those on `node` itself take on the
        new access; otherwise they do what they did.

        Raises:
            PermissionConflict: A user of one of the nodes excludes writing, or
                writes where writing is to end.

        Cancellation: a change that has begun is finished, or taken back, first.
        """
        from vblk.graph.reopening import NodeChange

        await self.change([NodeChange(node, read_only, handles=handles)])

    async def change(self, changes: "Sequence[NodeChange]") -> None:
        """Give nodes other access and other children, all of them or none.

        Raises: as `reopen` and `replace`; GraphError for a child that cannot go or come.

        Cancellation: changes that have begun are finished, or taken back, first.
        """
        from vblk.graph.reopening import change_nodes

        async with self.changing(*(change.node for change in changes)):
            await to_the_end(change_nodes(self, changes))

    async def replace(self, old: Node, new: Node, *, users: Sequence[Edge] | None = None) -> None:
        """Let the users of `old`, or those of its `users` that are given, use `new`.

        Users that stand below `new` keep `old`. When nobody uses or keeps `old`
        then, it is closed.

        Raises:
            NodeBusy: `old` is pinned, and all of its users would go.
            PermissionConflict: Two would use `new` who exclude each other.
            ReadOnly: Somebody writes to `old`, and `new` is for reading only.
            Cycle: A user stands below `new`.
            StorageError: `old` could not be flushed.

        Cancellation: all of it happens or nothing, as for all surgery.
        """
        from vblk.graph import surgery

        async with self.changing(old):
            await to_the_end(surgery.replace(self, old, new, users))

    async def insert_filter(self, node: Node, filter: Node) -> None:
        """Put a filter, which stands on `node` already, between it and all of its other users.

        Raises: as `replace`; GraphError when it is no filter of the node.
        """
        from vblk.graph import surgery

        async with self.changing(node):
            await to_the_end(surgery.insert_filter(self, node, filter))

    async def remove_filter(self, filter: Node) -> None:
        """Let the users of a filter use what it decorates; the filter is closed, unless it is kept.

        Raises: as `replace`; GraphError when it is no filter of one node.
        """
        from vblk.graph import surgery

        async with self.changing(filter):
            await to_the_end(surgery.remove_filter(self, filter))

    async def put_overlay(self, node: Node, overlay: Node) -> None:
        """Make `node` the backing of `overlay`, and its users those of the overlay: a snapshot.

        The node becomes read-only, after a flush. The overlay is open with its
        backing left out, and has no user.

        Raises:
            NodeBusy: The node is pinned.
            GraphError: The overlay cannot be one, or has a user or a backing.
            ReadOnly: Somebody writes to the node, and the overlay is for reading only.
            PermissionConflict: A user forbids what the overlay does with the node.
            StorageError: The node could not be flushed or reopened.
        """
        from vblk.graph import surgery

        async with self.changing(node):
            await to_the_end(surgery.put_overlay(self, node, overlay))

    async def take_off_overlay(self, overlay: Node, *, read_only: bool) -> None:
        """Undo `put_overlay` where nothing was written since: its backing gets its users back.

        The node becomes writable, unless `read_only`; the overlay is closed,
        unless it is kept.
        """
        from vblk.graph import surgery

        async with self.changing(overlay):
            await to_the_end(surgery.take_off_overlay(self, overlay, read_only=read_only))

    @asynccontextmanager
    async def changing(self, *nodes: Node) -> AsyncGenerator[None, None]:
        """Be alone with the graph, and nothing in flight that reaches the nodes, while the block runs."""
        async with AsyncExitStack() as stack:
            for node in nodes:
                await stack.enter_async_context(self.drained(node))
            await stack.enter_async_context(self._changing)
            yield

    @asynccontextmanager
    async def drained(self, node: Node) -> AsyncGenerator[None, None]:
        """Hold back all requests that could reach `node` while the block runs."""
        drain = _Drain(node)
        self._drains.append(drain)
        try:
            self._hold_reaching(drain)
            with self._hurried([handle for handle in self._handles if handle.traffic in drain.held]):
                for traffic in drain.held:
                    await traffic.quiet()
            yield
        finally:
            self._drains.remove(drain)
            for traffic in drain.held:
                traffic.release()

    def _hold_reaching(self, drain: _Drain) -> None:
        for handle in self._handles:
            if handle.traffic not in drain.held and drain.node in self._concerned(handle.node):
                drain.hold(handle)

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
            self._kept.clear()
            await self._close_unused(list(self._nodes.values()))
        except BaseException as error:
            failures.append(error)
        finally:
            self.fd_sets.close()
            if self._bulk is not None:
                await self._bulk.close()
            await self.engine.close()
        if failures:
            raise failures[0]

    async def _drop_edge(self, edge: Edge) -> None:
        self.rewire(Rewiring(removed=[edge]))
        await self._close_unused([edge.node])

    async def _close_unused(self, nodes: Sequence[Node]) -> None:
        async with self._changing:
            await self.close_unused(nodes)

    async def close_unused(self, nodes: Sequence[Node]) -> None:
        """Close those of `nodes` that nobody uses or keeps, then what nobody uses after that.

        For those who are `changing` the graph.
        """
        failures: list[BaseException] = []
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in self.edges or self.edges.to(node) or node in self._kept:
                continue  # in use, or not ours (any more)
            del self._nodes[node.name]
            self.edges.forget(node)
            try:
                await node.close()
            except BaseException as error:
                failures.append(error)
            waiting += self.edges.drop_children(node)
        if failures:
            raise failures[0]
