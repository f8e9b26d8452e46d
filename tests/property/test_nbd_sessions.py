"""Both sides of the transmission phase against each other: all requests, however cut, in every dialect."""

import random
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from vblk.wire.nbd import ClientSession, Command, CommandFlag, Exchange, Export, ExportFlag, Request
from vblk.wire.nbd.server_handshake import Agreement, Offer
from vblk.wire.nbd.server_replies import StructuredReplies
from vblk.wire.nbd.server_session import Request as Asked
from vblk.wire.nbd.server_session import ServerSession

SIZE = 1 << 18

asked = st.lists(
    st.tuples(
        st.sampled_from(
            [
                Command.READ,
                Command.WRITE,
                Command.FLUSH,
                Command.TRIM,
                Command.WRITE_ZEROES,
                Command.BLOCK_STATUS,
            ]
        ),
        st.integers(0, SIZE),
        st.integers(1, SIZE),
    ),
    min_size=1,
    max_size=12,
)


class Disk:
    """A server's side that carries requests out on bytes, one by one, and cuts its reads into pieces."""

    def __init__(self, server: ServerSession, dice: random.Random) -> None:
        self.server = server
        self.dice = dice
        self.content = bytearray(dice.randbytes(SIZE))

    def answer(self, request: Asked) -> bytes:
        refusal = self.server.refusal(request, SIZE)
        _, command, cookie, offset, length, payload = request
        replies = self.server.replies
        if refusal is not None:
            return replies.error(cookie, offset, *refusal)
        if command == Command.READ:
            return self._read(cookie, offset, length)
        if command == Command.WRITE:
            assert payload is not None
            self.content[offset : offset + length] = payload
        elif command == Command.WRITE_ZEROES:
            self.content[offset : offset + length] = bytes(length)
        elif command == Command.BLOCK_STATUS:
            chunked = cast("StructuredReplies", replies)
            first = self.dice.randrange(1, length + 1)
            extents = [(first, 3), (length - first, 0)][: 2 if first < length else 1]
            return chunked.status(cookie, offset, 0, extents) + chunked.end(cookie, offset)
        return replies.done(cookie, offset)

    def _read(self, cookie: int, offset: int, length: int) -> bytes:
        replies = self.server.replies
        data = bytes(self.content[offset : offset + length])
        if not isinstance(replies, StructuredReplies) or self.dice.random() < 0.5:
            return replies.data(cookie, offset, length) + data
        answer = b""
        at = 0
        while at < length:
            count = self.dice.randrange(1, length - at + 1)
            piece = data[at : at + count]
            if any(piece):
                answer += replies.piece(cookie, offset, offset + at, count) + piece
            else:
                answer += replies.hole(cookie, offset, offset + at, count)
            at += count
        return answer + replies.end(cookie, offset)


def poured(data: bytes, into: ClientSession | ServerSession, dice: random.Random) -> list[Exchange | Asked]:
    """Let bytes arrive in pieces of any length; return what came out."""
    out: list[Exchange | Asked] = []
    while data:
        room = into.room()
        count = min(len(room), len(data), dice.choice((1, 7, 4096, 1 << 18)))
        room[:count] = data[:count]
        data = data[count:]
        if isinstance(into, ClientSession):
            out += into.received(count)
        else:
            into.received(count)
            for each in into.requests():
                payload = None if each[5] is None else memoryview(bytes(each[5]))
                out.append((*each[:5], payload))
    return out


@settings(max_examples=60, deadline=None)
@given(asked, st.sampled_from(["simple", "structured", "extended"]), st.integers(0, 1 << 32))
def test_every_request_gets_its_answer(
    wishes: list[tuple[Command, int, int]], dialect: str, seed: int
) -> None:
    dice = random.Random(seed)
    structured, extended = dialect != "simple", dialect == "extended"
    offer = Offer("", SIZE, ExportFlag.NONE)
    server = ServerSession(Agreement(offer, structured, extended, (0,) if structured else ()))
    client = ClientSession(
        Export(SIZE, structured=structured, extended=extended, allocation=0 if structured else None)
    )
    disk = Disk(server, dice)
    wire = b""
    sent: list[tuple[Exchange, Request]] = []
    for command, offset, length in wishes:
        if command is Command.BLOCK_STATUS and not structured:
            continue
        payload = dice.randbytes(length) if command is Command.WRITE else None
        target = memoryview(bytearray(length)) if command is Command.READ else None
        flags = CommandFlag.FUA if dice.random() < 0.2 else CommandFlag.NONE
        length = 0 if command is Command.FLUSH else length
        request = Request(command, offset, length, flags, payload, target)
        exchange, header = client.begin(request)
        sent.append((exchange, request))
        wire += header + (payload or b"")
    requests = cast("list[Asked]", poured(wire, server, dice))
    assert len(requests) == len(sent)
    answers: list[bytes] = []
    expected: dict[int, bytes] = {}
    for found in requests:
        answers.append(disk.answer(found))
        if found[1] == Command.READ:
            expected[found[2]] = bytes(disk.content[found[3] : found[3] + found[4]])
    dice.shuffle(answers)
    finished = cast("list[Exchange]", poured(b"".join(answers), client, dice))
    assert {exchange.cookie for exchange in finished} == {exchange.cookie for exchange, _ in sent}
    for exchange, request in sent:
        beyond = request.offset + request.length > SIZE and request.command is not Command.FLUSH
        assert bool(exchange.error) == beyond
        if beyond:
            grows = request.command in (Command.WRITE, Command.WRITE_ZEROES)
            assert exchange.error == (28 if grows else 22)
        elif request.command is Command.READ:
            assert request.target is not None
            assert bytes(request.target) == expected[exchange.cookie]
        elif request.command is Command.BLOCK_STATUS:
            assert exchange.extents is not None
            assert sum(length for length, _ in exchange.extents) == request.length
