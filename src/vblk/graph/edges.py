"""The table of all edges of a graph, and the rules that hold for all of them.

Owns: who uses which node; that users of one node agree; that nothing is its own
ancestor; and that changes of edges take place together or not at all. It knows
neither requests nor files, and nothing in it waits: who calls it sees to it that
nothing is in flight where an edge is led elsewhere.

Ordering rule: edges are changed first and judged then, for only the whole can be
judged; what is refused is changed back before anybody else runs.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from vblk.errors import Cycle, GraphError, NodeBusy, PermissionConflict
from vblk.graph.edge import IDLE, Access, Edge, Permission, Role, access_of
from vblk.graph.node import Node

DEPTH_MAX = 256
"""The most images and filters in one chain."""


@dataclass(slots=True)
class Rewiring:
    """Changes of edges that belong together.

    `moved` edges lead to other nodes, `access` changes what users do; `added` and
    `removed` edges of parents are, or are no more, among their children. Whose access
    is said is not loose any more; `loosened` edges are again.
    """

    moved: dict[Edge, Node] = field(default_factory=dict[Edge, Node])
    access: dict[Edge, Access] = field(default_factory=dict[Edge, Access])
    added: Sequence[Edge] = ()
    removed: Sequence[Edge] = ()
    loosened: Sequence[Edge] = ()


class Edges:
    """The edges of one graph, by the node that they lead to."""

    def __init__(self) -> None:
        self._users: dict[Node, list[Edge]] = {}

    def __contains__(self, node: Node) -> bool:
        return node in self._users

    def admit(self, node: Node) -> None:
        """Take a node in, which has no users."""
        self._users[node] = []

    def forget(self, node: Node) -> None:
        """Let a node without users get none any more; it keeps its children."""
        del self._users[node]

    def drop_children(self, node: Node) -> list[Node]:
        """Take the children from a node that is forgotten, and return them."""
        edges = list(node.children.values())
        for edge in edges:
            edge.frozen = False
        self.apply(Rewiring(removed=edges))
        return [edge.node for edge in edges]

    def to(self, node: Node) -> list[Edge]:
        """Return the edges that lead to a node, the oldest first."""
        return list(self._users.get(node, ()))

    def apply(self, rewiring: Rewiring, *, as_if: Mapping[Node, bool] | None = None) -> Rewiring:
        """Change edges; return what would change them back.

        `as_if` says of nodes that they are to be judged as read-only, or not.

        Raises:
            PermissionConflict: Two users of a node exclude each other.
            ReadOnly: Somebody would write to a node that is read-only.
            Cycle: A node would be its own ancestor, or a chain grow too deep.
            GraphError: An edge would lead to a node that is not in the graph (any more).
            NodeBusy: An edge is frozen.
        """
        for node in (*rewiring.moved.values(), *(edge.node for edge in rewiring.added)):
            if node not in self._users:
                raise GraphError(f"'{node.filename}' is not in the graph", filename=node.filename)
        for edge in (*rewiring.moved, *rewiring.removed):
            refuse_frozen(edge)
        touched = [edge.node for edge in (*rewiring.moved, *rewiring.removed)]
        inverse = self._change(rewiring)
        try:
            for edge in (*rewiring.moved, *rewiring.added):
                self._refuse_cycle(edge)
            touched += [edge.node for edge in (*rewiring.moved, *rewiring.added, *rewiring.access)]
            touched += [edge.parent for edge in rewiring.added if edge.parent is not None]
            inverse.access |= self._refit([*touched, *(as_if or {})], as_if or {})
        except BaseException:
            self._change(inverse)
            raise
        inverse.loosened = [edge for edge in rewiring.access if edge.is_loose]
        for edge in inverse.loosened:
            edge.is_loose = False
        return inverse

    def check(self, rewiring: Rewiring, *, as_if: Mapping[Node, bool] | None = None) -> None:
        """Raise as `apply` would, and change nothing."""
        self._change(self.apply(rewiring, as_if=as_if))

    def restore(self, inverse: Rewiring) -> None:
        """Change edges back, to what was right before: it cannot fail."""
        self._change(inverse)

    def _change(self, rewiring: Rewiring) -> Rewiring:
        inverse = Rewiring(
            {edge: edge.node for edge in rewiring.moved},
            {edge: edge.access for edge in rewiring.access},
            rewiring.removed,
            rewiring.added,
        )
        for edge in rewiring.removed:
            self._users[edge.node].remove(edge)
            if edge.parent is not None:
                del edge.parent.children[edge.name]
        for edge in rewiring.added:
            self._users[edge.node].append(edge)
            if edge.parent is not None:
                edge.parent.children[edge.name] = edge
        for edge, node in rewiring.moved.items():
            self._users[edge.node].remove(edge)
            edge.node = node
            self._users[node].append(edge)
        for edge, access in rewiring.access.items():
            edge.access = access
        for edge in rewiring.loosened:
            edge.is_loose = True
        return inverse

    def _refit(self, nodes: Iterable[Node], as_if: Mapping[Node, bool]) -> dict[Edge, Access]:
        """Judge the users of nodes, and let filters pass on what theirs do; return what that was before."""
        before: dict[Edge, Access] = {}
        try:
            for node in _parents_first(nodes):
                self._judge(node, as_if.get(node, node.read_only))
                for edge in node.children.values():
                    if edge.role is Role.FILTERED:
                        before[edge] = edge.access
                        edge.access = self._passed_on(node)
                    elif edge.is_loose:
                        before[edge] = edge.access
                        edge.access = self._allowed(node)
        except BaseException:
            for edge, access in before.items():
                edge.access = access
            raise
        return before

    def _passed_on(self, node: Node) -> Access:
        """Return what a filter does with its child: what its users do, and what it says itself."""
        users = self._users.get(node)
        if not users:
            return node.idle_access
        permissions, shared = node.own_access
        for edge in users:
            permissions |= edge.permissions
            shared &= edge.shared
        return Access(permissions, shared)

    def _allowed(self, node: Node) -> Access:
        """Return what a node does with its backing image, by what its users do and allow."""
        users = self._users.get(node)
        if not users:
            return IDLE
        permissions, shared = access_of(Role.BACKING, read_only=True)
        write = Permission.WRITE
        if all(
            edge.shared & write and (edge.role is Role.TARGET or not edge.permissions & write)
            for edge in users
        ):
            shared |= write | Permission.RESIZE
        return Access(permissions, shared)

    def _judge(self, node: Node, read_only: bool) -> None:
        users = self._users.get(node, ())
        for number in reversed(range(len(users))):
            edge = users[number]
            if read_only and edge.permissions & Permission.WRITE:
                node.require_writable()
                raise PermissionConflict(
                    f"'{node.filename}' cannot become read-only: {edge.user} writes to it",
                    filename=node.filename,
                )
            for other in users[:number]:
                _refuse_conflict(edge, other)

    def _refuse_cycle(self, edge: Edge) -> None:
        parent, child = edge.parent, edge.node
        if parent is None:
            return
        if parent in reachable(child):
            raise Cycle(f"Making '{child.filename}' a child of '{parent.filename}' would create a cycle")
        if edge.role is not Role.FILE and self._levels_above(parent) + _levels_below(child) > DEPTH_MAX:
            raise Cycle(f"the backing chain has more than {DEPTH_MAX} images", filename=parent.filename)

    def _levels_above(self, node: Node) -> int:
        """Count the images and filters of the longest chain from a top down to `node`, itself included."""
        count = 0
        level = {node}
        while level and count <= DEPTH_MAX:
            count += 1
            level = {
                edge.parent
                for member in level
                for edge in self._users.get(member, ())
                if edge.role is not Role.FILE and edge.parent is not None
            }
        return count


def refuse_frozen(edge: Edge) -> None:
    """Raise NodeBusy when an edge is frozen."""
    if edge.frozen:
        parent = edge.user if edge.parent is None else f"'{edge.parent.name}'"
        raise NodeBusy(f"Cannot change frozen '{edge.name}' link from {parent} to '{edge.node.name}'")


@contextmanager
def frozen(edges: Sequence[Edge]) -> Generator[None, None, None]:
    """Let edges lead where they lead while the block runs.

    Raises:
        NodeBusy: Somebody else has frozen one of them.
    """
    for edge in edges:
        refuse_frozen(edge)
    for edge in edges:
        edge.frozen = True
    try:
        yield
    finally:
        for edge in edges:
            edge.frozen = False


def reachable(node: Node) -> list[Node]:
    """Return `node` and everything below it, each once."""
    seen: dict[Node, None] = {}
    stack = [node]
    while stack:
        member = stack.pop()
        if member not in seen:
            seen[member] = None
            stack.extend(edge.node for edge in member.children.values())
    return list(seen)


def _levels_below(node: Node) -> int:
    """Count the images and filters of the longest chain from `node` down, itself included."""
    count = 0
    level = {node}
    while level and count <= DEPTH_MAX:
        count += 1
        level = {
            edge.node for member in level for edge in member.children.values() if edge.role is not Role.FILE
        }
    return count


def _parents_first(nodes: Iterable[Node]) -> list[Node]:
    """Return nodes, and all whose uses follow from theirs, so that a parent comes before its children."""
    ordered: list[Node] = []
    seen: set[Node] = set()
    stack = [(node, False) for node in nodes]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            ordered.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [
                (edge.node, False)
                for edge in node.children.values()
                if edge.role is Role.FILTERED or edge.is_loose
            ]
    return ordered[::-1]


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
