"""Servers out of a string of choices, for the fuzzer and for the tests: mostly right, and wrong somewhere.

Owns: what such a server says, and what is done with it. The same bytes always
make the same server.
"""

import struct
from collections.abc import Iterator

from tests.support.mutants import Choices
from vblk.errors import BlockError
from vblk.wire.nbd import ClientHandshake, ClientSession, Command, Export, Request

ANSWERS_MAX = 200
_LENGTHS = (0, 1, 4, 6, 8, 9, 12, 14, 16, 20, 24, 4096, 1 << 20, 1 << 31, (1 << 32) - 1)
_EXPORTS = (
    Export(size=1 << 20),
    Export(size=1 << 20, structured=True, allocation=1),
    Export(size=1 << 40, structured=True, extended=True, allocation=1),
)
_KINDS = (0, 1, 2, 5, 6, 0x8001, 0x8002, 0x8123, 7)
_OPTION_REPLIES = (1, 2, 3, 4, (1 << 31) + 1, (1 << 31) + 5, (1 << 31) + 6, 9)


def exercise(data: bytes) -> str:
    """Let a server talk to the client; return how that ended.

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
    handshake = ClientHandshake("disk", tls=not choices.below(4))
    handshake.receive(b"NBDMAGIC")
    if not choices.below(4):
        handshake.receive(bytes.fromhex("0000420281861253") + choices.take(140)[:136])
    else:
        sent = handshake.receive(b"IHAVEOPT" + struct.pack(">H", choices.below(4)))
        for _ in range(ANSWERS_MAX):
            if choices.spent or handshake.export is not None:
                break
            sent = handshake.receive(_option_answer(choices, sent)) or sent
            if handshake.awaits_tls:
                sent = handshake.secured()
    return "transmission" if handshake.export is not None else "handshake"


def _option_answer(choices: Choices, asked: bytes) -> bytes:
    at = asked.rfind(b"IHAVEOPT")
    option = int.from_bytes(asked[at + 8 : at + 12], "big") if choices.below(16) else choices.below(20)
    kind = _OPTION_REPLIES[choices.below(len(_OPTION_REPLIES))]
    if not choices.below(20):
        return choices.take(choices.below(64))
    payload = b""
    if kind == 3:
        size = choices.below(1 << 17) << choices.below(48)
        payload = (
            struct.pack(">HQH", 0, size % (1 << 64), choices.below(1 << 13)),
            struct.pack(">HIII", 3, 1 << choices.below(18), 1 << choices.below(26), 1 << choices.below(32)),
            choices.take(choices.below(20)),
        )[choices.below(3)]
    elif kind == 4:
        payload = choices.take(4) + (b"base:allocation" if choices.below(8) else b"qemu:x")
    elif kind != 1 or not choices.below(8):
        payload = choices.take(choices.below(40))
    length = len(payload) if choices.below(16) else _LENGTHS[choices.below(len(_LENGTHS))]
    return bytes.fromhex("0003e889045565a9") + struct.pack(">III", option, kind, length) + payload


def _transmit(choices: Choices) -> str:
    session = ClientSession(_EXPORTS[choices.below(3)])
    requests: list[tuple[Command, int, int]] = []
    for _ in range(1 + choices.below(4)):
        command = (Command.READ, Command.WRITE, Command.BLOCK_STATUS, Command.FLUSH)[choices.below(4)]
        offset, length = choices.below(1 << 10) * 512, (1 + choices.below(64)) * 64
        target = memoryview(bytearray(length)) if command is Command.READ else None
        session.begin(Request(command, offset, length, target=target))
        requests.append((command, offset, length))
    for answer in _answers(choices, requests):
        while answer:
            room = session.room()
            count = min(len(room), len(answer), 1 + choices.below(1 << 12))
            room[:count] = answer[:count]
            answer = answer[count:]
            session.received(count)
    return "served"


def _answers(choices: Choices, requests: list[tuple[Command, int, int]]) -> Iterator[bytes]:
    for _ in range(ANSWERS_MAX):
        if choices.spent:
            return
        cookie = choices.below(len(requests)) if choices.below(16) else choices.below(1 << 16)
        command, offset, length = requests[cookie % len(requests)]
        form = choices.below(8)
        if form == 0:
            yield choices.take(choices.below(40))
        elif form == 1:
            payload = bytes(length) if command is Command.READ else b""
            yield struct.pack(">IIQ", 0x67446698, choices.below(3) * 14, cookie + 1) + payload
        else:
            yield _chunk(choices, cookie + 1, offset, length, extended=form > 5)


def _chunk(choices: Choices, cookie: int, offset: int, length: int, *, extended: bool) -> bytes:
    kind = _KINDS[choices.below(len(_KINDS))]
    within = choices.below(length + 8)
    part = choices.below(length + 8)
    payload = {
        0: b"",
        1: struct.pack(">Q", offset + within) + bytes(part),
        2: struct.pack(">QI", offset + within, part),
        5: struct.pack(">I", choices.below(8) and 1)
        + b"".join(
            struct.pack(">II", choices.below(1 << 10), choices.below(4)) for _ in range(choices.below(6))
        ),
        6: struct.pack(">II", 1, choices.below(3)) + struct.pack(">QQ", choices.below(1 << 12), 0),
        0x8001: struct.pack(">IH", choices.below(3) * 5, choices.below(6)) + b"texts",
        0x8002: struct.pack(">IH", 5, 0) + struct.pack(">Q", offset + within),
    }.get(kind, b"x" * choices.below(30))
    size = len(payload) if choices.below(16) else _LENGTHS[choices.below(len(_LENGTHS))]
    flags = choices.below(2)
    if extended:
        return struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, cookie, offset, size) + payload
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, size) + payload
