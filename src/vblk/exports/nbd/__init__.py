"""NBD, the server's side: exports of nodes over sockets.

Owns: the server, its exports, and their connections. What the bytes mean is decided
in `vblk.wire.nbd`.
"""

from vblk.exports.nbd.export import Bitmap, NamedBitmap, NbdExport
from vblk.exports.nbd.server import NbdServer

__all__ = ["Bitmap", "NamedBitmap", "NbdExport", "NbdServer"]
