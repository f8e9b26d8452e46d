"""Clients out of a string of choices, for the fuzzer and for the tests: mostly right, and wrong somewhere.

Owns: what such a client says to the server's side of the protocol, and what is done
with it. The same bytes always make the same client.
"""

import struct

from tests.support.mutants import Choices
from vblk.errors import BlockError
from vblk.wire.nbd import ExportFlag
from vblk.wire.nbd.server_handshake import Agreement, Offer, ServerHandshake
from vblk.wire.nbd.server_session import ServerSession

PIECES_MAX = 200
_SIZE = 1 << 20
_OFFERS = {
    offer.name: offer
    for offer in (
        Offer("", _SIZE, ExportFlag.HAS_FLAGS, contexts=("base:allocation", "qemu:dirty-bitmap:b")),
        Offer("disk", 1 << 40, ExportFlag.READ_ONLY, "a disk", minimum=512),
    )
}
_NAMES = (b"", b"disk", b"dusk", b"\xff\n", b"x" * 5000)
_QUERIES = (b"base:allocation", b"base:", b"qemu:", b"qemu:dirty-bitmap:", b"qemu:dirty-bitmap:b", b"x")
_LENGTHS = (0, 1, 27, 4096, 1 << 17, (1 << 17) + 1, 1 << 20, 1 << 25, (1 << 25) + 1, (1 << 32) - 1)


def exercise(data: bytes) -> str:
    """Let a client talk to the server; return how that ended.

    Anything but a `BlockError` is a defect, and is raised.
    """
    choices = Choices(data)
    try:
        if choices.below(2):
            return _shake_hands(choices)
        return _transmit(choices)
    except BlockError as error:
        return type(error).__name__


def _shake_hands(choices: Choices) -> str:
    handshake = ServerHandshake(lambda: _OFFERS, tls=not choices.below(4))
    sent = handshake.greeting()
    handshake.receive(struct.pack(">I", choices.below(4) if choices.below(8) else 3))
    for _ in range(PIECES_MAX):
        if choices.spent or handshake.ended or handshake.agreement is not None:
            break
        sent = handshake.receive(_option(choices))
        assert len(sent) < 1 << 17, "an answer out of all proportion"
        if handshake.starting_tls:
            handshake.secured()
    if handshake.agreement is not None:
        return "transmission"
    return "ended" if handshake.ended else "handshake"


def _option(choices: Choices) -> bytes:
    number = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 99)[choices.below(11)]
    if not choices.below(20):
        return choices.take(choices.below(64))
    name = _NAMES[choices.below(len(_NAMES))]
    data = b""
    if number == 1:
        data = name
    elif number in (6, 7):
        infos = [choices.below(6) for _ in range(choices.below(4))]
        count = len(infos) if choices.below(8) else choices.below(1 << 16)
        data = struct.pack(">I", len(name)) + name + struct.pack(f">H{len(infos)}H", count, *infos)
    elif number in (9, 10):
        queries = [_QUERIES[choices.below(len(_QUERIES))] for _ in range(choices.below(5))]
        count = len(queries) if choices.below(8) else choices.below(1 << 32)
        counted = b"".join(struct.pack(">I", len(query)) + query for query in queries)
        data = struct.pack(">I", len(name)) + name + struct.pack(">I", count) + counted
    elif not choices.below(8):
        data = choices.take(choices.below(16))
    length = len(data) if choices.below(16) else _LENGTHS[choices.below(len(_LENGTHS))]
    return b"IHAVEOPT" + struct.pack(">II", number, length) + data


def _transmit(choices: Choices) -> str:
    extended = not choices.below(3)
    offer = _OFFERS[("", "disk")[choices.below(2)]]
    session = ServerSession(
        Agreement(offer, extended or bool(choices.below(2)), extended, (0, 1)[: choices.below(3)])
    )
    count = 0
    for _ in range(PIECES_MAX):
        if choices.spent or session.over:
            break
        data = _request(choices, extended=extended)
        while data:
            room = session.room()
            step = min(len(room), len(data), max(1 << choices.below(19), len(data) >> 6))
            room[:step] = data[:step]
            data = data[step:]
            session.received(step)
            for request in session.requests():
                flags, command, cookie, offset, length, payload = request
                refusal = session.refusal(request, offer.size)
                count += 1
                if refusal is not None:
                    session.replies.error(cookie, offset, *refusal)
                    continue
                assert command in range(8)
                assert command == 3 or offset + length <= offer.size or command == 7
                assert payload is None or len(payload) == length
                assert flags < 1 << 6
    return "left" if session.over else "served" if count else "silent"


def _request(choices: Choices, *, extended: bool) -> bytes:
    if not choices.below(24):
        return choices.take(choices.below(64))
    command = choices.below(9)
    flags = (0, 0, 0, 1, 2, 4, 8, 16, 32, 1 << 15)[choices.below(10)]
    offset = choices.below(_SIZE) if choices.below(8) else choices.below(1 << 64)
    length = choices.below(1 << 10) if choices.below(4) else _LENGTHS[choices.below(len(_LENGTHS))]
    payload = b""
    if extended and command in (1, 7) and choices.below(8):
        flags |= 32
    if (flags & 32 if extended else command == 1) and length <= 1 << 18:
        payload = bytes(length)
    if extended and command == 7 and flags & 32 and choices.below(4):
        ids = [choices.below(3) for _ in range(choices.below(4))]
        payload = struct.pack(f">Q{len(ids)}I", choices.below(1 << 21), *ids)
        length = len(payload)
    magic = 0x21E41C71 if extended else 0x25609513
    if not choices.below(40):
        magic ^= 1
    return (
        struct.pack(
            ">IHHQQQ" if extended else ">IHHQQI",
            magic,
            flags,
            command,
            choices.below(1 << 16),
            offset,
            length,
        )
        + payload
    )
