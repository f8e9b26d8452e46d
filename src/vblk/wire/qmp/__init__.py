"""The QEMU Machine Protocol without its sockets.

Owns: the framing of JSON values in a stream of bytes, the negotiation, and the
texts of greetings, replies and events, in QEMU's spelling and order.
"""

from vblk.wire.qmp.session import NEGOTIATION, ErrorClass, QmpError, QmpSession, Request
from vblk.wire.qmp.text import encode_json

__all__ = ["NEGOTIATION", "ErrorClass", "QmpError", "QmpSession", "Request", "encode_json"]
