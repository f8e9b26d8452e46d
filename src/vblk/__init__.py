"""vblk: a virtual-disk block layer.

    async with vblk.open("disk.vhdx") as disk:
        boot = await disk.read(0, 512)

`vblk.open` opens an image and its chain, `vblk.open_file` the same as a
synchronous file object. Errors are typed: see `vblk.BlockError`.
"""

from vblk.disk import Disk, DiskFile, open, open_file
from vblk.errors import (
    BlockError,
    CorruptImage,
    Cycle,
    GraphError,
    ImageError,
    Misaligned,
    NeedsReplay,
    NodeBusy,
    NodeFailed,
    NoSpace,
    OpenDenied,
    OptionError,
    OutOfRange,
    PeerError,
    PermissionConflict,
    ReadOnly,
    Reason,
    RequestError,
    StorageError,
    Unsupported,
    UnsupportedFeature,
    WrongFormat,
)
from vblk.extent import Kind
from vblk.graph.node import Preallocation, Span
from vblk.graph.site import ChainRules

__version__ = "0.1.0"

__all__ = [
    "BlockError",
    "ChainRules",
    "CorruptImage",
    "Cycle",
    "Disk",
    "DiskFile",
    "GraphError",
    "ImageError",
    "Kind",
    "Misaligned",
    "NeedsReplay",
    "NoSpace",
    "NodeBusy",
    "NodeFailed",
    "OpenDenied",
    "OptionError",
    "OutOfRange",
    "PeerError",
    "PermissionConflict",
    "Preallocation",
    "ReadOnly",
    "Reason",
    "RequestError",
    "Span",
    "StorageError",
    "Unsupported",
    "UnsupportedFeature",
    "WrongFormat",
    "__version__",
    "open",
    "open_file",
]
