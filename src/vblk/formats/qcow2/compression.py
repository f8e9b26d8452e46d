"""Compressed clusters, packed and unpacked.

Owns: the two methods, and how packed clusters lie behind each other. What is unpacked
is never longer than a cluster, whatever the bytes say.

Source: docs/interop/qcow2.txt, "Compressed Clusters Descriptor", "Additional fields".
"""

import zlib
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from vblk.errors import CorruptImage, Reason, Unsupported
from vblk.formats.edits import Range
from vblk.units import align_up

WINDOW_BITS: Final = 12
"""Readers of deflate keep so much: a window of 4 KiB."""


def pack(data: memoryview, method: str) -> bytes | None:
    """Return a cluster packed; None where it would not become smaller.

    Raises:
        Unsupported: The method needs a package that is not installed.
    """
    if method == "zlib":
        packer = zlib.compressobj(wbits=-WINDOW_BITS)
        packed = packer.compress(data) + packer.flush()
    else:
        packed = _zstandard("write").ZstdCompressor(write_content_size=False).compress(data)
    return packed if len(packed) < len(data) else None


def laid_out(lengths: Sequence[int], cluster_size: int, references_max: int) -> list[Range]:
    """Return where packed clusters begin, and their lengths: no space has too many references then."""
    layout: list[Range] = []
    at = references = 0
    for length in lengths:
        if at % cluster_size and references == references_max:
            at = align_up(at, cluster_size)
        if not at % cluster_size:
            references = 0
        layout.append((at, length))
        is_within = at // cluster_size == (at + length - 1) // cluster_size
        references = references + 1 if is_within else 1
        at += length
    return layout


def unpack(data: bytes, method: str, cluster_size: int) -> bytes:
    """Return the cluster that `data` was packed from; what is behind its end is ignored.

    Raises:
        CorruptImage: The data is not that of a whole cluster.
        Unsupported: The method needs a package that is not installed.
    """
    unpacked = _unpack_zlib(data, cluster_size) if method == "zlib" else _unpack_zstd(data, cluster_size)
    if unpacked is None or len(unpacked) != cluster_size:
        raise CorruptImage(Reason.BAD_VALUE, f"a compressed cluster cannot be unpacked ({method})")
    return unpacked


def _unpack_zlib(data: bytes, cluster_size: int) -> bytes | None:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, cluster_size)
    except zlib.error:
        return None


def _unpack_zstd(data: bytes, cluster_size: int) -> bytes | None:
    zstandard = _zstandard("read")
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data)
    unpacked = bytearray()
    try:
        while len(unpacked) < cluster_size:
            piece = reader.read(cluster_size - len(unpacked))
            if not piece:
                return None
            unpacked += piece
    except zstandard.ZstdError:
        return None
    return bytes(unpacked)


def _zstandard(purpose: str) -> Any:
    try:
        return import_module("zstandard")
    except ImportError as error:
        raise Unsupported(
            f"this image is compressed with zstd: install the package 'zstandard' to {purpose} it"
        ) from error
