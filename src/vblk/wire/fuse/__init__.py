"""The FUSE protocol between Linux and a file system in user space, without its device.

Owns: the numbers and records, how requests are read and how replies are written.

Source: fuse(4); the kernel's published header linux/fuse.h, version 7.31 and later.
"""

from vblk.wire.fuse.numbers import Opcode
from vblk.wire.fuse.requests import Request, parse_request

__all__ = ["Opcode", "Request", "parse_request"]
