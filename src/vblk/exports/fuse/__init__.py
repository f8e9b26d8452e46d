"""Disks as files: exports over FUSE.

Owns: mounting, what the kernel is shown, and the export that answers it.
"""

from vblk.exports.fuse.export import FuseExport

__all__ = ["FuseExport"]
