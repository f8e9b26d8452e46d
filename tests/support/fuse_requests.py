"""Requests as the kernel writes them, and whatever it never would.

Owns: their bytes, and what the fuzzer does with others. The layouts are those of
linux/fuse.h, written down a second time.
"""

import struct

from vblk.errors import PeerError
from vblk.wire.fuse import parse_request


def request(opcode: int, record: bytes = b"", *, unique: int = 7, node: int = 1) -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(record), opcode, unique, node, 0, 0, 99, 0, 0) + record


SAMPLES = {
    "init": request(26, struct.pack("=IIIII44x", 7, 38, 131072, 0xFFFFFFFF, 0)),
    "lookup": request(1, b"disk\0"),
    "getattr": request(3, struct.pack("=IIQ", 0, 0, 0)),
    "setattr": request(
        4, struct.pack("=IIQQQQQQIIIIIIII", 0x3F, 0, 0, 4096, 0, 1, 2, 3, 10, 20, 30, 0o100640, 0, 5, 6, 0)
    ),
    "open": request(14, struct.pack("=II", 2, 0)),
    "read": request(15, struct.pack("=QQIIQII", 0, 4096, 512, 0, 0, 0, 0)),
    "write": request(16, struct.pack("=QQIIQII", 0, 512, 5, 0, 0, 0, 0) + b"bytes"),
    "interrupt": request(36, struct.pack("=Q", 5)),
    "fallocate": request(43, struct.pack("=QQQII", 0, 512, 1024, 3, 0)),
    "lseek": request(46, struct.pack("=QQII", 0, 512, 4, 0)),
    "batch-forget": request(42, struct.pack("=IIQQ", 1, 0, 2, 1)),
    "unknown": request(9999, b"whatever"),
}


def exercise(data: bytes) -> str:
    """Read a request; return how that ended. Anything but a `PeerError` is a defect, and is raised."""
    try:
        return type(parse_request(memoryview(data)).body).__name__
    except PeerError:
        return "PeerError"
