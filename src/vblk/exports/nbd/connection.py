"""One client of the NBD server, from its first byte to its last.

Owns: the way of requests from the socket to the disk and of the answers back. What
the page cache answers is answered at once, a whole batch of requests at a time; the
rest waits in a queue for a fixed number of workers.

Ordering rules:
- After so many bytes, others have their turn.
- No more is received from a client that does not take its answers, or whose
  requests hold as much memory as one client may.
- A connection has ended when no request of it is in flight, whatever became of its
  socket; only then is it gone from its export.
"""

import asyncio
from collections import deque
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from vblk.aio.wakefulness import Wakefulness
from vblk.errors import BlockError, PeerError
from vblk.exports.nbd.channel import Channel, FilePiece
from vblk.exports.nbd.export import NbdExport
from vblk.exports.nbd.waiting import carry_out, failure
from vblk.extent import Kind
from vblk.graph.node import Buffer, Span
from vblk.graph.statistics import Operation
from vblk.units import KIB, MIB
from vblk.wire.nbd.numbers import Command, CommandFlag, ErrorCode
from vblk.wire.nbd.server_handshake import ServerHandshake
from vblk.wire.nbd.server_replies import StructuredReplies
from vblk.wire.nbd.server_session import SHORT_MAX, Request, ServerSession

if TYPE_CHECKING:
    import socket

    from vblk.exports.nbd.server import NbdServer

TURN: Final = MIB
"""After so many bytes, others have their turn."""

GROUP: Final = 8
"""How many buffers leave together: few enough that the client works on some answers while others are made."""

PENDING_MAX: Final = 2 * MIB
"""How many bytes of answers a client may leave in the queue before it is heard no more."""

MEMORY_MAX: Final = 64 * MIB
"""How much memory the waiting requests of one client may hold, in bytes; one may always wait."""

WAITING_MAX: Final = 1024
"""How many requests of one client wait at a time."""

WORKERS: Final = 16
"""How many requests of one client are carried out at a time."""

INLINE_MAX: Final = 256 * KIB
"""The longest read that passes through memory on the loop's own thread."""

FILE_FROM: Final = 32 * KIB
"""The shortest read whose bytes go from the page cache to the socket directly."""

FAREWELL: Final = 5.0
"""Seconds that a client has for taking its last answers, when the export ends."""

_HANDSHAKE_ROOM: Final = 4 * KIB
_ZEROS: Final = bytes(MIB)
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_READ_FLAGS: Final = int(CommandFlag.DF)
_WRITE_FLAGS: Final = int(CommandFlag.PAYLOAD_LEN)
_COUNTED: Final[dict[int, Operation]] = {
    Command.READ: Operation.READ,
    Command.WRITE: Operation.WRITE,
    Command.TRIM: Operation.DISCARD,
    Command.WRITE_ZEROES: Operation.ZERO,
    Command.FLUSH: Operation.FLUSH,
}


class Connection:
    """A client. It begins with the handshake when it is made.

    Concurrency: belongs to one event loop's thread.
    """

    def __init__(self, server: "NbdServer", sock: "socket.socket") -> None:
        """Take the client's socket over and greet it."""
        loop = asyncio.get_running_loop()
        self._server = server
        self._loop = loop
        self._channel = Channel(
            sock, on_room=self._go_on, on_missing=self._read_piece, on_lost=self._leave_off
        )
        self._handshake = ServerHandshake(server.offers, tls=server.tls is not None)
        self._room = memoryview(bytearray(_HANDSHAKE_ROOM))
        self._export: NbdExport | None = None
        self._session: ServerSession | None = None
        self._wakefulness = Wakefulness()
        self._has_more = False
        """Whether there are requests in memory that nobody has looked at."""
        self._ending = False
        self._waiting: deque[tuple[Request, int, int]] = deque()
        """Requests, each with the bytes of memory that it holds and the time of its arrival."""
        self._memory = 0
        self._in_flight = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._readers: set[asyncio.Task[None]] = set()
        self._sleepers: list[asyncio.Future[None]] = []
        self.ended: asyncio.Future[None] = loop.create_future()
        self._alarm = loop.call_later(server.handshake_limit, self._too_slow)
        greeting = self._handshake.greeting()
        self._channel.send([greeting])
        self._channel.listen(self._shake_hands)

    # The handshake

    def _too_slow(self) -> None:
        self._server.report("a client did not finish its handshake in time")
        self.cut_off()

    def _shake_hands(self) -> None:
        handshake, channel = self._handshake, self._channel
        try:
            count = self._take_into(self._room)
            if self._ending:
                return
            if handshake.starting_tls and channel.is_secure:
                self._authorize()
                handshake.secured()
            channel.send([handshake.receive(bytes(self._room[:count]))])
            if handshake.starting_tls and not channel.has_tls:
                assert self._server.tls is not None
                channel.start_tls(self._server.tls.server_session())
        except PeerError as error:
            self._server.report(f"option negotiation failed: {error.message}")
            self.cut_off()
            return
        agreement = self._handshake.agreement
        if agreement is not None:
            self._begin(ServerSession(agreement, self._handshake.rest))
        elif self._handshake.ended:
            self._leave_off()
        elif self._channel.pending > PENDING_MAX:
            self._channel.listen(None)

    def _authorize(self) -> None:
        """Ask whether a client may come that has proven who it is.

        Raises:
            PeerError: It may not.
        """
        authorization, name = self._server.authorization, self._channel.peer_name
        if authorization is not None and (name is None or not authorization.allows(name)):
            raise PeerError(f"TLS x509 authz check for {name} is denied")

    def _take_into(self, room: memoryview) -> int:
        """Receive bytes and return how many; when the client has said its last, leave off."""
        try:
            count = self._channel.receive_into(room)
        except BlockingIOError:
            return 0
        except OSError:
            count = 0
        if not count:
            self._leave_off()
        return count

    def _begin(self, session: ServerSession) -> None:
        """Take requests from now on."""
        export = self._server.find(session.agreement.offer.name)
        if export is None:  # it went while the client was choosing it
            self.cut_off()
            return
        self._alarm.cancel()
        self._session, self._export = session, export
        export.connections.add(self)
        export.handle.traffic.on_hold.append(self._give_files_back)
        self._channel.listen(self._receive)
        self._turn()

    # Requests

    def _receive(self) -> None:
        if self._has_more:
            return
        assert self._session is not None
        try:
            count = self._take_into(self._session.room())
        except PeerError as error:
            self._server.report(error.message)
            self.cut_off()
            return
        if count:
            self._wakefulness.asked()
            self._session.received(count)
            self._turn()
            self._wakefulness.answered()

    def _turn(self) -> None:
        """Answer what is there, as much as one turn allows."""
        self._has_more = False
        if self._ending:
            return
        session, export = self._session, self._export
        assert session is not None
        assert export is not None
        try:
            self._answer(session, export)
        except Exception as error:
            # What is no fault of the client is a defect of ours; nobody knows how far its requests came.
            self._server.report(error.message if isinstance(error, PeerError) else _internal(error))
            self.cut_off()
            return
        if session.over:
            self._leave_off()
        elif self._is_full():
            self._channel.listen(None)
        elif self._has_more:
            self._loop.call_soon(self._turn)

    def _answer(self, session: ServerSession, export: NbdExport) -> None:
        start = perf_counter_ns()
        traffic, node = export.handle.traffic, export.handle.node
        size = min(node.size, session.agreement.offer.size)
        read_end = 0 if traffic.held else size
        write_end = read_end if export.writable else 0
        try_read, try_write = node.try_read, node.try_write
        data_header, done = session.replies.data, session.replies.done
        out: list[Buffer] = []
        reads = read_bytes = writes = written_bytes = 0
        budget = TURN
        for request in session.requests():
            flags, command, cookie, offset, length, payload = request
            budget -= length
            try:
                if command == _READ:
                    data = None
                    if 0 < length < FILE_FROM and offset + length <= read_end and not flags & ~_READ_FLAGS:
                        data = try_read(offset, length)
                    if data is not None:
                        out += (data_header(cookie, offset, length), data)
                        reads += 1
                        read_bytes += length
                    elif not self._answer_otherwise(request, size):
                        budget = -1
                elif (
                    command == _WRITE
                    and payload is not None
                    and not flags & ~_WRITE_FLAGS
                    and offset + length <= write_end
                    and try_write(offset, payload)
                ):
                    out.append(done(cookie, offset))
                    writes += 1
                    written_bytes += length
                elif not self._answer_otherwise(request, size):
                    budget = -1
            except BlockError as error:
                out.append(session.replies.error(cookie, offset, *failure(error, command)))
                export.statistics.fail(_COUNTED[command])
            if len(out) >= GROUP:
                self._channel.send(out)
                out.clear()
            if budget < 0:
                self._has_more = True
                break
        self._channel.send(out)
        if reads or writes:
            elapsed = perf_counter_ns() - start
            if reads:
                export.statistics.account(Operation.READ, read_bytes, elapsed, reads)
            if writes:
                export.statistics.account(Operation.WRITE, written_bytes, elapsed, writes)

    def _answer_otherwise(self, request: Request, size: int) -> bool:
        """Answer what is no short read or write of cached bytes, or let it wait.

        Returns: whether there is room for more.
        """
        flags, command, cookie, offset, length, payload = request
        session, export = self._session, self._export
        assert session is not None
        assert export is not None
        refusal = session.refusal(request, size)
        if refusal is not None:
            self._channel.send([session.replies.error(cookie, offset, *refusal)])
            if command in _COUNTED:
                export.statistics.fail(_COUNTED[command])
        elif command != _READ or export.handle.traffic.held or not self._send_cached(request, export):
            if payload is not None and len(payload) <= SHORT_MAX:
                request = (flags, command, cookie, offset, length, memoryview(bytes(payload)))
            cost = length if command == _READ else 0 if payload is None else len(payload)
            self._memory += cost
            self._waiting.append((request, cost, perf_counter_ns()))
            export.statistics.in_flight += 1
            self._wake_worker()
        return not self._is_full()

    def _is_full(self) -> bool:
        return (
            self._channel.pending > PENDING_MAX
            or self._memory > MEMORY_MAX
            or len(self._waiting) >= WAITING_MAX
        )

    def _send_cached(self, request: Request, export: NbdExport) -> bool:
        """Send a long read that the page cache has from there to the socket; return False if it has not."""
        flags, _, cookie, offset, length, _ = request
        if length < FILE_FROM:
            return False
        assert self._session is not None
        replies = self._session.replies
        start = perf_counter_ns()
        node = export.handle.node
        pieces = None if self._channel.has_tls else _cached(node.try_resolve(offset, length))
        if pieces is None:
            data = node.try_read(offset, length) if length <= INLINE_MAX else None
            if data is None:
                return False
            self._channel.send([replies.data(cookie, offset, length), data])
        elif (
            isinstance(replies, StructuredReplies)
            and not flags & _READ_FLAGS
            and any(span.kind is Kind.ZERO for span, _ in pieces)
        ):
            for span, descriptor in pieces:
                if descriptor is None:
                    self._channel.send([replies.hole(cookie, offset, span.guest_offset, span.length)])
                else:
                    header = replies.piece(cookie, offset, span.guest_offset, span.length)
                    self._send_span(header, span, descriptor, export)
            self._channel.send([replies.end(cookie, offset)])
        else:
            header = replies.data(cookie, offset, length)
            for span, descriptor in pieces:
                self._send_span(header, span, descriptor, export)
                header = b""
        export.statistics.account(Operation.READ, length, perf_counter_ns() - start)
        return True

    def _send_span(self, header: bytes, span: Span, descriptor: int | None, export: NbdExport) -> None:
        if descriptor is None:
            whole, rest = divmod(span.length, len(_ZEROS))
            self._channel.send([header, *[_ZEROS] * whole, _ZEROS[:rest]])
            return
        assert span.leaf is not None
        traffic = export.handle.traffic
        traffic.begin()
        if header:
            self._channel.send([header])
        piece = FilePiece(span.leaf, span.leaf_offset, span.length, traffic.end, descriptor)
        self._channel.send_file(piece)

    # What has to be waited for

    def _wake_worker(self) -> None:
        if self._sleepers:
            self._sleepers.pop().set_result(None)
        elif len(self._workers) < WORKERS:
            self._workers.add(self._loop.create_task(self._work()))

    async def _work(self) -> None:
        """Carry out one waiting request after the other, until the connection ends."""
        assert self._session is not None
        assert self._export is not None
        statistics = self._export.statistics
        while True:
            while not self._waiting:
                sleeper: asyncio.Future[None] = self._loop.create_future()
                self._sleepers.append(sleeper)
                await sleeper
            request, cost, since = self._waiting.popleft()
            self._in_flight += 1
            try:
                answer, has_failed = await carry_out(self._export, self._session, request)
            except Exception as error:  # a defect of ours: the client is told, and the others are served
                self._server.report(_internal(error))
                cookie, offset = request[2:4]
                text = "internal error of the server"
                answer, has_failed = [self._session.replies.error(cookie, offset, ErrorCode.EIO, text)], True
            self._in_flight -= 1
            self._memory -= cost
            statistics.in_flight -= 1
            operation = _COUNTED.get(request[1])
            if operation is not None and has_failed:
                statistics.fail(operation)
            elif operation is not None:
                statistics.account(operation, request[4], perf_counter_ns() - since)
            self._channel.send(answer)
            self._go_on()

    def _give_files_back(self) -> None:
        """Read what is on its way from files to the client: the graph is to be changed."""
        self._channel.stop_at_files()

    def _read_piece(self, piece: FilePiece) -> None:
        reader = self._loop.create_task(self._replace(piece))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)

    async def _replace(self, piece: FilePiece) -> None:
        """Send a piece of a file through memory, now that it is not cached or not to be touched any more."""
        try:
            data = await piece.leaf.read(piece.offset, piece.length)
        except BlockError as error:  # its answer has begun: there is no other way to say so
            self._server.report(f"a read failed when its answer had begun: {error}")
            self.cut_off()
        else:
            self._channel.replace(piece, data)

    def _go_on(self) -> None:
        """Hear the client again, if there is room for that; or end, if all is done."""
        if self._ending:
            self._settle()
        elif self._session is None:
            self._channel.listen(self._shake_hands)
        elif not self._is_full():
            self._channel.listen(self._receive)
            if self._has_more:
                self._turn()

    # The end

    def _leave_off(self) -> None:
        """Hear the client no more; what was asked for ends."""
        if not self._ending:
            self._ending = True
            self._wakefulness.sleep()
            self._channel.listen(None)
            self._alarm.cancel()
            self._alarm = self._loop.call_later(FAREWELL, self._channel.give_up)
        self._settle()

    def _settle(self) -> None:
        """End when nothing is in flight, and the client has taken all answers or is gone."""
        if self._waiting or self._in_flight or self._channel.pending or self.ended.done():
            return
        self._alarm.cancel()
        self._channel.close()
        for worker in self._workers:
            worker.cancel()
        if self._export is not None:
            self._export.connections.discard(self)
            self._export.handle.traffic.on_hold.remove(self._give_files_back)
        self._server.forget(self, was_served=self._session is not None)
        self.ended.set_result(None)

    async def leave(self) -> None:
        """Hear the client no more, and return when it is gone and its requests have ended."""
        self._leave_off()
        await asyncio.shield(self.ended)

    def cut_off(self) -> None:
        """Close the socket at once; what was asked for ends all the same."""
        self._channel.close()
        self._leave_off()
        self._settle()


def _internal(error: Exception) -> str:
    return f"internal error: {type(error).__name__}: {error}"


def _cached(spans: list[Span] | None) -> list[tuple[Span, int | None]] | None:
    """Return spans, each with the descriptor that has it in the page cache; None if one is not there."""
    if spans is None:
        return None
    found: list[tuple[Span, int | None]] = []
    for span in spans:
        descriptor = None
        if span.kind is not Kind.ZERO:
            if span.kind is Kind.DATA and span.leaf is not None:
                descriptor = span.leaf.cached_descriptor(span.leaf_offset, span.length)
            if descriptor is None:
                return None
        found.append((span, descriptor))
    return found
