"""An opened qcow2 image: what it is and where its bytes are.

Owns: `Qcow2Image`, the facts, and the questions that drivers and commands ask
of them; and `load_image`, which reads the header and nothing else.

Source: docs/interop/qcow2.txt.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from vblk.errors import BlockError, CorruptImage, Reason
from vblk.formats.qcow2.header import COMPRESSION_TYPES, Header, parse_cluster_bits, parse_header
from vblk.formats.qcow2.layout import CORRUPT, DIRTY, ENTRY_SIZE
from vblk.formats.qcow2.mapping import ClusterMap

ReadAt = Callable[[int, int], Awaitable[bytes]]
"""Reads from a file: offset and length in bytes; short at its end."""

_START = 128


class Qcow2Image:
    """The facts of one image, and its map. All sizes are bytes."""

    def __init__(self, header: Header, filename: str) -> None:
        self.header = header
        self.filename = filename
        self.geometry = header.geometry
        self.map = ClusterMap(header, filename)

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk that a guest sees."""
        return self.header.size

    @property
    def is_dirty(self) -> bool:
        """Whether the reference counts may be behind."""
        return bool(self.header.incompatible & DIRTY)

    @property
    def is_corrupt(self) -> bool:
        """Whether somebody found damage and marked the image."""
        return bool(self.header.incompatible & CORRUPT)

    @property
    def has_zero_clusters(self) -> bool:
        """Whether a cluster can say that it is zeros, whatever the backing file holds."""
        return self.header.version >= 3

    @property
    def compression(self) -> str:
        """The name of the method by which clusters are compressed."""
        return COMPRESSION_TYPES[self.header.compression_type]

    def describe(self) -> dict[str, Any]:
        """Return what `info` shows of this format, ready for JSON, in QEMU's order."""
        header = self.header
        facts: dict[str, Any] = {
            "compat": "1.1" if header.version >= 3 else "0.10",
            "compression-type": self.compression,
        }
        if header.version >= 3:
            facts["lazy-refcounts"] = header.lazy_refcounts
        facts["refcount-bits"] = self.geometry.refcount_bits
        if header.version >= 3:
            facts["corrupt"] = self.is_corrupt
            facts["extended-l2"] = False
        return facts


async def load_image(read: ReadAt, file_size: int, *, filename: str) -> Qcow2Image:
    """Read the header of an image.

    Args:
        read: Reads from the file.
        file_size: Its length in bytes.
        filename: For errors.

    Raises:
        ImageError: It is no qcow2 image, is damaged, or needs what this version has not.
    """
    try:
        start = await read(0, min(_START, file_size))
        cluster_size = 1 << parse_cluster_bits(start)
        header = parse_header(await read(0, min(cluster_size, file_size)))
        for name, at, length in (
            ("refcount table", header.refcount_table_offset, 1),
            ("L1 table", header.l1_table_offset, header.l1_size * ENTRY_SIZE),
        ):
            if length and at >= file_size:
                raise CorruptImage(
                    Reason.OUT_OF_FILE, f"the {name} lies beyond the end of the file", offset=at
                )
    except BlockError as error:
        error.filename = error.filename or filename
        raise
    return Qcow2Image(header, filename)
