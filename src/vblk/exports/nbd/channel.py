"""A client's socket: what comes in, what goes out, and what waits to go out.

Owns: the socket, the queue behind it, and the order in which answers leave. Pieces
of files go from the page cache to the socket without passing through memory of
ours; nothing here knows what the bytes mean.

Ordering rule: what is sent leaves in the order in which it was sent. A piece of a
file whose pages are not cached any more stops the queue until it was read, by
somebody who may wait.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vblk.graph.node import Buffer, Node
from vblk.units import KIB

if TYPE_CHECKING:
    from vblk.aio.tls import TlsSession

BUFFERS_AT_ONCE: Final = 512
"""The most buffers of one system call, below IOV_MAX."""

WIRE_AT_ONCE: Final = 64 * KIB
"""How much is decrypted at a time, in bytes."""

PENDING_LOW: Final = 512 * KIB
"""When fewer bytes wait than this, there is room again."""


class FilePiece:
    """A part of a leaf's file on its way to a client; `length` is what is left of it, in bytes."""

    __slots__ = ("descriptor", "ended", "is_read", "leaf", "length", "offset")

    def __init__(
        self, leaf: Node, offset: int, length: int, ended: Callable[[], None], descriptor: int | None
    ) -> None:
        self.leaf = leaf
        self.offset = offset
        self.length = length
        self.ended = ended
        """Called once, when the file is needed no more."""
        self.descriptor = descriptor
        """What to send it from, if the page cache had all of it a moment ago."""
        self.is_read = False
        """Whether somebody reads it meanwhile."""


class Channel:
    """A connected socket that never waits.

    `on_room` is called when so much was taken that more may be sent, `on_missing`
    when a piece of a file has to be read by somebody who may wait, `on_lost` when the
    client is gone. None of them is called from within `send`.

    Concurrency: belongs to one event loop's thread; every method runs to completion.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_room: Callable[[], None],
        on_missing: Callable[[FilePiece], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Take `sock` over."""
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._queue: deque[Buffer | FilePiece] = deque()
        self.pending = 0
        """How many bytes wait to be taken by the client."""
        self._waits_for_room = False
        self._is_stopped = False
        """Whether the head of the queue is a piece that somebody reads."""
        self._on_room = on_room
        self._on_missing = on_missing
        self._on_lost = on_lost
        self._listener: Callable[[], None] | None = None
        self._tls: TlsSession | None = None
        self._plain = memoryview(b"")
        """What was decrypted, and not taken yet."""
        self.closed = False

    # What comes in

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call `listener` whenever there is something to receive; None: do not."""
        if self.closed or listener is self._listener:
            return
        if listener is None:
            self._loop.remove_reader(self._socket)
        else:
            self._loop.add_reader(self._socket, listener)
            if self._plain:
                self._loop.call_soon(self._listen_again)
        self._listener = listener

    def receive_into(self, room: memoryview) -> int:
        """Receive bytes and return how many; 0 when the client has said its last.

        Raises:
            BlockingIOError: There is nothing now.
            OSError: The connection is broken.
            PeerError: The client breaks TLS, or is not who it has to be.
        """
        if self._tls is None:
            return self._socket.recv_into(room)
        if not self._plain:
            wire = self._socket.recv(WIRE_AT_ONCE)
            if not wire:
                return 0
            try:
                self._plain = memoryview(self._tls.receive(wire))
            finally:
                self._send_wire([self._tls.to_send()])
            if not self._plain:
                if self._tls.ended:
                    return 0
                raise BlockingIOError
        count = min(len(room), len(self._plain))
        room[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        if self._plain:
            self._loop.call_soon(self._listen_again)
        return count

    def _listen_again(self) -> None:
        """Have taken what was decrypted, of which the socket says nothing."""
        if self._listener is not None and self._plain:
            self._listener()
            self._loop.call_soon(self._listen_again)

    # TLS

    def start_tls(self, session: "TlsSession") -> None:
        """Go on inside of TLS, with the next byte of either side."""
        self._tls = session

    @property
    def has_tls(self) -> bool:
        """Whether bytes go through TLS, so that no file can be sent."""
        return self._tls is not None

    @property
    def is_secure(self) -> bool:
        """Whether the handshake of TLS is done."""
        return self._tls is not None and self._tls.handshake_done

    @property
    def peer_name(self) -> str | None:
        """Who the client has proven to be."""
        return None if self._tls is None else self._tls.peer_name

    # What goes out

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send buffers of bytes, which the caller does not change any more."""
        if self._tls is not None and not self.closed:
            for buffer in buffers:
                self._tls.send(buffer)
            buffers = [self._tls.to_send()]
        self._send_wire(buffers)

    def _send_wire(self, buffers: Sequence[Buffer]) -> None:
        if self.closed or not buffers:
            return
        length = sum(map(len, buffers))
        done = 0
        if not self._queue and len(buffers) <= BUFFERS_AT_ONCE:
            try:
                done = self._socket.sendmsg(buffers)
            except BlockingIOError:
                pass
            except OSError:
                self._lose()
                return
            if done == length:
                return
        self.pending += length - done
        for buffer in buffers:
            if done >= len(buffer):
                done -= len(buffer)
                continue
            self._queue.append(memoryview(buffer)[done:] if done else buffer)
            done = 0
        self._flush()

    def send_file(self, piece: FilePiece) -> None:
        """Send a part of a file, whose pages are cached as far as anybody knows."""
        if self.closed:
            piece.ended()
            return
        self._queue.append(piece)
        self.pending += piece.length
        self._flush()

    def replace(self, piece: FilePiece, data: Buffer) -> None:
        """Send these bytes in the place of what is left of a piece, as `on_missing` asks for."""
        if self.closed:
            return
        self._is_stopped = self._is_stopped and self._queue[0] is not piece
        self._queue[self._queue.index(piece)] = data
        piece.ended()
        self._flush()
        self._tell_room()

    def stop_at_files(self) -> None:
        """Let all pieces of files that wait be read, so that the files are needed no more."""
        for piece in self._pieces():
            self._have_read(piece)

    def _have_read(self, piece: FilePiece) -> None:
        if not piece.is_read:
            piece.is_read, piece.descriptor = True, None
            self._loop.call_soon(self._on_missing, piece)

    def _pieces(self) -> list[FilePiece]:
        return [each for each in self._queue if isinstance(each, FilePiece)]

    def _flush(self) -> None:
        """Send what the socket takes, and wait for room when something is left."""
        try:
            while self._queue and not self._is_stopped:
                if not self._send_head():
                    break
        except BlockingIOError:
            pass
        except OSError:
            self._lose()
            return
        waits = bool(self._queue) and not self._is_stopped
        if waits != self._waits_for_room:
            self._waits_for_room = waits
            if waits:
                self._loop.add_writer(self._socket, self._writable)
            else:
                self._loop.remove_writer(self._socket)

    def _send_head(self) -> bool:
        """Send from the head of the queue; return False when the socket has taken less than it was given."""
        queue = self._queue
        head = queue[0]
        if isinstance(head, FilePiece):
            return self._send_piece(head)
        buffers: list[Buffer] = []
        length = 0
        for each in queue:
            if isinstance(each, FilePiece) or len(buffers) == BUFFERS_AT_ONCE:
                break
            buffers.append(each)
            length += len(each)
        done = self._socket.sendmsg(buffers)
        self.pending -= done
        is_all = done == length
        for buffer in buffers:
            if done < len(buffer):
                if done:
                    queue[0] = memoryview(buffer)[done:]
                break
            done -= len(buffer)
            queue.popleft()
        return is_all

    def _send_piece(self, piece: FilePiece) -> bool:
        descriptor, piece.descriptor = piece.descriptor, None
        if descriptor is None and not piece.is_read:
            descriptor = piece.leaf.cached_descriptor(piece.offset, piece.length)
        if descriptor is None:
            self._is_stopped = True
            self._have_read(piece)
            return False
        done = os.sendfile(self._socket.fileno(), descriptor, piece.offset, piece.length)
        if not done:
            raise ConnectionError("a file ends before what was promised of it")
        self.pending -= done
        piece.offset += done
        piece.length -= done
        if piece.length:
            return False
        self._queue.popleft()
        piece.ended()
        return True

    def _writable(self) -> None:
        self._flush()
        self._tell_room()

    def _tell_room(self) -> None:
        if not self.closed and self.pending < PENDING_LOW:
            self._on_room()

    # The end

    def _lose(self) -> None:
        self.close()
        self._loop.call_soon(self._on_lost)

    def give_up(self) -> None:
        """Close the socket of a client that takes no more, and tell that it is gone."""
        if not self.closed:
            self._lose()

    def close(self) -> None:
        """Close the socket; what waits is dropped. Idempotent."""
        if self.closed:
            return
        self.listen(None)
        if self._tls is not None and not self._queue:
            self._tls.farewell()
            with suppress(OSError):
                self._socket.send(self._tls.to_send())
        self.closed = True
        if self._waits_for_room:
            self._loop.remove_writer(self._socket)
        pieces = self._pieces()
        self._queue.clear()
        self.pending = 0
        self._socket.close()
        for piece in pieces:
            piece.ended()
