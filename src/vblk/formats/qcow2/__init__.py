"""qcow2: QEMU's own format, from header to reference counts. Pure: no I/O of its own.

Owns: what the bytes of a qcow2 file mean. The modules go from the header
(`header`, `layout`) over the map (`tables`, `mapping`) to changes (`planner`,
`writing`, `survey`, `counts`), `create` and `check`.
"""

from vblk.formats.qcow2.compression import unpack
from vblk.formats.qcow2.header import Header
from vblk.formats.qcow2.image import Qcow2Image, load_image
from vblk.formats.qcow2.snapshots import Snapshot, read_snapshots

__all__ = ["Header", "Qcow2Image", "Snapshot", "load_image", "read_snapshots", "unpack"]
