"""How much space the data of an image takes in another one.

Owns: the count. It reads no data: what the tables and the file system call zero
takes none.
"""

from vblk.extent import Kind
from vblk.graph.handle import Handle
from vblk.jobs.walk import walk
from vblk.units import align_down, align_up


async def data_in_units(handle: Handle, unit: int) -> int:
    """Return the bytes of all units in which the image has data; `unit` is in bytes.

    Raises:
        ImageError: The image's tables are damaged.
        StorageError: They cannot be read.
    """
    total = counted = 0
    async for span in walk(handle, 0, handle.size):
        if span.kind is not Kind.ZERO:
            start = max(counted, align_down(span.guest_offset, unit))
            counted = max(counted, align_up(span.guest_offset + span.length, unit))
            total += counted - start if counted > start else 0
    return total
