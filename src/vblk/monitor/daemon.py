"""The daemon: a graph, what is exported of it, and who is told of changes.

Owns: the exports, the NBD server, the jobs and the objects by their ids, and the
nodes that the monitor keeps alive. No sockets of the monitor: commands are functions
over a daemon, whoever brings them.

Ordering rule: at the end exports stop first, with what their clients asked for; then
jobs, then the nodes, parents before children.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from vblk.errors import BlockError, GraphError
from vblk.graph.edge import Edge, Permission
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.jobs.job import Job
from vblk.jobs.states import Status
from vblk.monitor.log import Log
from vblk.opening import hand_down, open_node
from vblk.options import NodeOptions

VERSION: Final[Mapping[str, Any]] = {
    "qemu": {"micro": 22, "minor": 2, "major": 7},
    "package": "vblk 0.1.0",
}
"""The release of QEMU whose monitor this one follows, and who follows it."""

Tell = Callable[[str, Mapping[str, Any], int], None]
"""Told of an event: its name, its data, and the time in nanoseconds since the epoch."""


class Daemon:
    """What the commands of a monitor work on.

    Concurrency: belongs to one event loop's thread.
    """

    version: Mapping[str, Any] = VERSION

    def __init__(self, graph: Graph, log: Log | None = None) -> None:
        """Manage `graph`, which is closed in the end."""
        self.graph = graph
        self.log = log if log is not None else Log("vblk daemon")
        self.listeners: list[Tell] = []
        self.jobs: dict[str, Job] = {}
        self.ended = asyncio.Event()
        """Set when somebody asked the daemon to end."""
        self._kept: dict[Node, Handle] = {}

    def emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell everybody who listens of an event."""
        now = time.time_ns()
        self.log.say("qmp-event", name=event, data=dict(data))
        for listener in list(self.listeners):
            listener(event, data, now)

    def job_event(self, job: Job, event: str, data: Mapping[str, Any]) -> None:
        """Tell of a job, and forget it when it is no more."""
        self.emit(event, data)
        if job.status is Status.NULL:
            self.jobs.pop(job.id, None)

    def find_device(self, device: str | None, node_name: str | None) -> Node:
        """Return the node that a command names by one of two members.

        Raises:
            GraphError: There is no such node. Devices are not in this daemon.
        """
        for node in self.graph.nodes():
            if node.name == node_name:
                return node
        raise GraphError(f"Cannot find device='{device or ''}' nor node-name='{node_name or ''}'")

    async def add_node(self, options: NodeOptions) -> Node:
        """Open a node and keep it.

        Raises:
            BlockError: It does not open.
        """
        node = await open_node(self.graph, hand_down(options), Request(read_only=False))
        try:
            self._kept[node] = self.graph.hold(node, "the monitor", Permission.NONE)
        except BaseException:
            await self.graph.discard_unused(node)
            raise
        self.log.say("node-added", node=node.name, driver=node.driver, filename=node.filename)
        return node

    def is_own(self, edge: Edge) -> bool:
        """Tell whether an edge is only what keeps a node alive for the monitor."""
        kept = self._kept.get(edge.node)
        return kept is not None and kept.edge is edge

    async def delete_node(self, node: Node) -> None:
        """Let go of a node that nobody else uses.

        Raises:
            GraphError: It is in use, or was not added by itself.
        """
        others = [edge for edge in self.graph.users(node) if not self.is_own(edge)]
        if any(edge.parent is None for edge in others):
            raise GraphError(f"Node {node.name} is in use")
        if node not in self._kept:
            raise GraphError(f"Node {node.name} is not owned by the monitor")
        if others:
            raise GraphError(f"Block device {node.name} is in use")
        await self.graph.release(self._kept.pop(node))
        self.log.say("node-deleted", node=node.name)

    async def close(self) -> None:
        """End everything, cleanly. Each failure is noted, and the rest goes on."""
        for job in list(self.jobs.values()):
            job.give_up()
            await job.ended()
        try:
            await self.graph.close()
        except BlockError as error:
            self.log.note("close-failed", str(error))
