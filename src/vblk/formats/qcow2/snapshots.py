"""The internal snapshots of an image.

Owns: reading their table. They are counted and kept; using them is another matter.

Source: docs/interop/qcow2.txt, "Snapshots".
"""

import struct
from typing import NamedTuple

from vblk.errors import CorruptImage, Reason
from vblk.formats.qcow2.header import Header
from vblk.formats.qcow2.image import ReadAt
from vblk.formats.qcow2.layout import SNAPSHOT_TABLE_SIZE_MAX
from vblk.units import align_up

_SNAPSHOT = struct.Struct(">QIHHIIQII")
_EXTRA = struct.Struct(">QQq")


class Snapshot(NamedTuple):
    """One internal snapshot: where its L1 table is, its names, and when it was taken.

    `taken` is in nanoseconds since 1970, `ran` how long the guest had run, in
    nanoseconds; `state_size` are the bytes of its saved state. `instructions`
    is None where that was not counted.
    """

    l1_table_offset: int
    l1_size: int
    identifier: str
    name: str
    taken: int
    ran: int
    state_size: int
    instructions: int | None


async def read_snapshots(read: ReadAt, header: Header) -> tuple[list[Snapshot], int]:
    """Return the snapshots and the length of their table in bytes.

    Raises:
        CorruptImage: The table does not hold as many, or is too long.
    """
    found: list[Snapshot] = []
    at = header.snapshots_offset
    for _ in range(header.snapshots):
        record = await read(at, _SNAPSHOT.size)
        if len(record) < _SNAPSHOT.size:
            raise CorruptImage(Reason.TRUNCATED, "the file ends within the snapshot table", offset=at)
        offset, entries, id_length, name_length, seconds, rest, ran, state, extra = _SNAPSHOT.unpack(record)
        known = await read(at + _SNAPSHOT.size, min(extra, _EXTRA.size))
        state, _, instructions = _EXTRA.unpack(known + _EXTRA.pack(state, 0, -1)[len(known) :])
        names = await read(at + _SNAPSHOT.size + extra, id_length + name_length)
        found.append(
            Snapshot(
                offset,
                entries,
                names[:id_length].decode("utf-8", "replace"),
                names[id_length:].decode("utf-8", "replace"),
                seconds * 1_000_000_000 + rest,
                ran,
                state,
                None if instructions == -1 else instructions,
            )
        )
        at += align_up(_SNAPSHOT.size + extra + id_length + name_length, 8)
        if at - header.snapshots_offset > SNAPSHOT_TABLE_SIZE_MAX:
            raise CorruptImage(Reason.LIMIT, "Snapshot table too large", offset=header.snapshots_offset)
    return found, at - header.snapshots_offset
