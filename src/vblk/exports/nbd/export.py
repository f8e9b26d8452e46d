"""An export of the NBD server: a node under a name.

Owns: what is offered to clients, and who of them is there.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from vblk.errors import GraphError, OptionError, ReadOnly
from vblk.exports.export import Export
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.units import align_down
from vblk.wire.nbd.meta_contexts import contexts_of
from vblk.wire.nbd.numbers import STRING_MAX, ExportFlag
from vblk.wire.nbd.server_handshake import PAYLOAD_MAX, PREFERRED, Offer

if TYPE_CHECKING:
    from vblk.exports.nbd.connection import Connection
    from vblk.exports.nbd.server import NbdServer

_READING = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA | ExportFlag.SEND_CACHE
_WRITING = ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES | ExportFlag.SEND_FAST_ZERO


class Bitmap(Protocol):
    """What an export needs of a dirty bitmap."""

    def ranges(self, offset: int, length: int) -> Iterable[tuple[int, int, bool]]:
        """Return (offset, length, dirty) of the runs in a range, gapless and in order."""
        ...


class NamedBitmap(NamedTuple):
    """A dirty bitmap under the name that clients see."""

    name: str
    bitmap: Bitmap


class NbdExport(Export):
    """A node that the clients of an `NbdServer` find by `name`; the empty one is the default."""

    type: ClassVar[str] = "nbd"

    def __init__(
        self,
        id: str,
        graph: Graph,
        handle: Handle,
        *,
        name: str,
        description: str = "",
        writable: bool = False,
        bitmaps: Sequence[NamedBitmap] = (),
        allocation_depth: bool = False,
        multi_conn: bool = True,
    ) -> None:
        """Show what `handle` holds; see `Export`.

        `allocation_depth` and `bitmaps` are what clients may ask about besides
        holes. `multi_conn` tells them that they may use several connections to write.

        Raises:
            OptionError: A name or description is too long for the protocol.
            ReadOnly: It is to be writable, and the handle is not.
        """
        for what, text in (("name", name), ("description", description)):
            if len(text.encode("utf-8", errors="surrogateescape")) > STRING_MAX:
                raise OptionError(f"export {what} '{text[:32]}...' too long")
        if writable and handle.read_only:
            raise ReadOnly("Block node is read-only", filename=handle.node.filename)
        super().__init__(id, graph, handle, writable=writable)
        self.name = name
        self.description = description
        self.bitmaps = tuple(bitmaps)
        self.allocation_depth = allocation_depth
        self.multi_conn = multi_conn
        self.connections: set[Connection] = set()
        self.server: NbdServer | None = None

    @property
    def users(self) -> int:
        """How many clients have chosen this export and are still there."""
        return len(self.connections)

    def offer(self) -> Offer:
        """Return what a client is told now."""
        flags = _READING | (_WRITING if self.writable else ExportFlag.READ_ONLY)
        if self.multi_conn:
            # One handle serves all connections, so a flush of one covers what the others wrote.
            flags |= ExportFlag.CAN_MULTI_CONN
        return Offer(
            self.name,
            self.handle.size,
            flags,
            self.description,
            minimum=self.handle.node.alignment,
            preferred=max(PREFERRED, self.handle.node.alignment),
            maximum=align_down(PAYLOAD_MAX, PREFERRED),
            contexts=contexts_of(
                allocation_depth=self.allocation_depth, bitmaps=[each.name for each in self.bitmaps]
            ),
        )

    async def start(self) -> None:
        """Let clients come: the server finds the export by its name from now on.

        Raises:
            GraphError: No server was given it, by `NbdServer.add`.
        """
        if self.server is None:
            raise GraphError("NBD server not running")

    def cut_off(self) -> None:
        """Hear no client any more."""
        for connection in list(self.connections):
            connection.cut_off()

    async def let_go(self) -> None:
        """Wait until every request has ended and every client is gone; take no new ones."""
        if self.server is not None:
            self.server.remove(self)
        await asyncio.gather(*(connection.leave() for connection in list(self.connections)))
