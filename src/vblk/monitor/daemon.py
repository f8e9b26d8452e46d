"""The daemon: a graph, what is exported of it, and who is told of changes.

Owns: the exports, the NBD server, the jobs and the objects by their ids, and the
nodes that the monitor keeps alive. No sockets of the monitor: commands are functions
over a daemon, whoever brings them.

Ordering rule: at the end whatever holds requests back goes first, breakpoints and jobs;
then the exports stop, with what their clients asked for; then the nodes are closed,
parents before children.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vblk.errors import BlockError, GraphError
from vblk.exports.export import Export
from vblk.exports.nbd import NbdServer
from vblk.filters.events import find_listener
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.jobs.job import Job
from vblk.jobs.states import Status
from vblk.monitor.log import Log
from vblk.monitor.schema import EVENTS
from vblk.opening import hand_down, open_node
from vblk.options import NodeOptions

VERSION: Final[Mapping[str, Any]] = {
    "qemu": {"micro": 22, "minor": 2, "major": 7},
    "package": "vblk 0.1.0",
}
"""The release of QEMU whose monitor this one follows, and who follows it."""

EVENT_PERIOD: Final = 1.0
"""Seconds in which an event of one node is told once."""

Tell = Callable[[str, Mapping[str, Any], int], None]
"""Told of an event: its name, its data, and the time in nanoseconds since the epoch."""


@dataclass(slots=True)
class _Limited:
    """An event that was told a moment ago, and what is to be told of it when that is over."""

    waiting: Mapping[str, Any] | None = None


class Daemon:
    """What the commands of a monitor work on.

    Concurrency: belongs to one event loop's thread.
    """

    version: Mapping[str, Any] = VERSION
    events: Mapping[str, type[Any]] = EVENTS
    """What it may tell of, each with the type of its data."""
    io_output: Callable[[str], None] | None = None
    """Takes what the command `qemu-io` prints; without, that is the command's answer."""

    def __init__(self, graph: Graph, log: Log | None = None) -> None:
        """Manage `graph`, which is closed in the end."""
        self.graph = graph
        self.log = log if log is not None else Log("vblk daemon")
        self.listeners: list[Tell] = []
        self.jobs: dict[str, Job] = {}
        self._limited: dict[tuple[str, str], _Limited] = {}
        graph.listeners.append(self._reported)
        self.ended = asyncio.Event()
        """Set when somebody asked the daemon to end."""
        self._running: set[asyncio.Future[None]] = set()
        self.exports: dict[str, Export] = {}
        self.nbd_server: NbdServer | None = None

    def emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell everybody who listens of an event."""
        now = time.time_ns()
        self.log.say("qmp-event", name=event, data=dict(data))
        for listener in list(self.listeners):
            listener(event, data, now)

    def _reported(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell of something that a node reports; of what may come in floods the last in a second."""
        key = (event, str(data.get("node-name", data.get("reference"))))
        limited = self._limited.get(key)
        if limited is not None:
            limited.waiting = data
            return
        self.emit(event, data)
        if not self._limited:
            asyncio.get_running_loop().call_later(EVENT_PERIOD, self.tell_waiting)
        self._limited[key] = _Limited()

    def tell_waiting(self) -> None:
        """Tell of what was reported while its like had been told of a moment ago."""
        limited, self._limited = self._limited, {}
        for (event, _), each in limited.items():
            if each.waiting is not None:
                self._reported(event, each.waiting)

    def job_event(self, job: Job, event: str, data: Mapping[str, Any]) -> None:
        """Tell of a job, and forget it when it is no more."""
        self.emit(event, data)
        if job.status is Status.NULL:
            self.jobs.pop(job.id, None)

    def find_either(self, name: str) -> Node:
        """Return the node that a command names by a device's name or a node's.

        Raises:
            GraphError: There is no such node.
        """
        return self.graph.find(name)

    def find_guest_device(self, name: str) -> Node:
        """Return the node that a guest's device has.

        Raises:
            GraphError: There is no such device: there are none in this daemon.
        """
        raise GraphError(f"Device '{name}' not found")

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
        node = await self.open_node(options)
        self.graph.keep(node)
        self.log.say("node-added", node=node.name, driver=node.driver, filename=node.filename)
        return node

    async def open_node(self, options: NodeOptions) -> Node:
        """Open a node, which nobody uses or keeps yet.

        Raises:
            BlockError: It does not open.
        """
        for name in _names_in(options):
            if any(node.name == name for node in self.graph.nodes()):
                raise GraphError(f"Duplicate nodes with node-name='{name}'")
        return await open_node(self.graph, hand_down(options), Request(read_only=False))

    async def delete_node(self, node: Node) -> None:
        """Close a node that was added, and that nobody uses.

        Raises:
            GraphError: It is in use, or was not added by itself.
        """
        if not self.graph.keeps(node) and any(edge.parent is None for edge in self.graph.users(node)):
            raise GraphError(f"Node {node.name} is in use")
        await self.graph.let_go(node)
        self.log.say("node-deleted", node=node.name)

    def keep_running(self, work: "asyncio.Future[None]") -> None:
        """Let work that nobody waits for run on; it is waited for in the end."""
        self._running.add(work)
        work.add_done_callback(self._running.discard)

    # Exports

    def add_export(self, export: Export) -> None:
        """Note an export, until it has ended."""
        self.exports[export.id] = export
        export.on_end = self._export_ended
        self.log.say("export-added", id=export.id, type=export.type, node=export.handle.node.name)

    def _export_ended(self, export: Export) -> None:
        del self.exports[export.id]
        self.emit("BLOCK_EXPORT_DELETED", {"id": export.id})

    async def close(self) -> None:
        """End everything, cleanly. Each failure is noted, and the rest goes on."""
        for node in self.graph.nodes():
            listener = find_listener(node)
            if listener is not None:
                listener.resume_all()
        for job in list(self.jobs.values()):
            job.give_up()
            await job.ended()
        if self.nbd_server is not None:
            await self._noted(self.nbd_server.close())
            self.nbd_server = None
        for export in list(self.exports.values()):
            await self._noted(export.stop())
        if self._running:
            await asyncio.wait(self._running)
        await self._noted(self.graph.close())

    async def _noted(self, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except BlockError as error:
            self.log.note("close-failed", str(error))


def _names_in(options: NodeOptions) -> Iterator[str]:
    """Yield the names that nodes are to have."""
    if options.node_name is not None:
        yield options.node_name
    for child in options.children.values():
        if isinstance(child, NodeOptions):
            yield from _names_in(child)
