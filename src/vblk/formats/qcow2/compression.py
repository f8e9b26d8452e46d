"""Compressed clusters, unpacked.

Owns: the two methods. What is unpacked is never longer than a cluster, whatever
the bytes say.

Source: docs/interop/qcow2.txt, "Compressed Clusters Descriptor", "Additional fields".
"""

import zlib
from importlib import import_module
from typing import Any

from vblk.errors import CorruptImage, Reason, Unsupported


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
    try:
        zstandard: Any = import_module("zstandard")
    except ImportError as error:
        raise Unsupported(
            "this image is compressed with zstd: install the package 'zstandard' to read it"
        ) from error
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
