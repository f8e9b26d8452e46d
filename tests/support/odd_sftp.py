"""An SFTP server that misbehaves in one way: `python odd_sftp.py WAY`, as sshd's subsystem.

Owns: one file of 64 KiB in which every byte is its offset modulo 251, and the ways to answer a read.
"""

import struct
import sys

SIZE = 65536
CONTENT = bytes(offset % 251 for offset in range(SIZE))

INIT, CLOSE, READ, FSTAT, STAT = 1, 4, 5, 8, 17
VERSION, STATUS, HANDLE, DATA, ATTRIBUTES = 2, 101, 102, 103, 105
END_OF_FILE, HAS_SIZE, HAS_MODE, REGULAR = 1, 1, 4, 0o100644


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _answer_to_read(way: str, number: int, offset: int, length: int) -> tuple[int, bytes]:
    data, head = CONTENT[offset : offset + length], struct.pack(">I", number)
    if way == "short":
        data = data[:4000]
    elif way == "long":
        data += b"x"
    elif way == "cut":
        return DATA, head + struct.pack(">I", 1 << 30) + data
    elif way == "unknown":
        return DATA, struct.pack(">I", number + 1000) + _text(data)
    elif way == "other":
        return HANDLE, head + _text(b"h")
    elif way == "end":
        return STATUS, head + struct.pack(">I", END_OF_FILE) + _text(b"") + _text(b"")
    return DATA, head + _text(data)


def _serve(way: str) -> None:
    receive, send = sys.stdin.buffer, sys.stdout.buffer
    while head := receive.read(5):
        length, kind = struct.unpack(">IB", head)
        body = receive.read(length - 1)
        number = struct.unpack(">I", body[:4])[0]
        answer: tuple[int, bytes]
        if kind == INIT:
            answer = VERSION, struct.pack(">I", 3)
        elif kind in (FSTAT, STAT):
            answer = ATTRIBUTES, struct.pack(">IIQI", number, HAS_SIZE | HAS_MODE, SIZE, REGULAR)
        elif kind == READ:
            if way == "gone":
                return
            answer = _answer_to_read(way, number, *struct.unpack(">QI", body[-12:]))
        elif kind == CLOSE:
            answer = STATUS, struct.pack(">II", number, 0) + _text(b"") + _text(b"")
        else:
            answer = HANDLE, struct.pack(">I", number) + _text(b"h")
        send.write(struct.pack(">IB", len(answer[1]) + 1, answer[0]) + answer[1])
        send.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
