"""VHDX: parsing, mapping and checking, all in memory.

Source: [MS-VHDX], Microsoft's Open Specification of the Virtual Hard Disk v2 format.
"""

from vblk.formats.vhdx.check import CheckReport, check_image, scan_image
from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.image import DirtyLog, VhdxImage
from vblk.formats.vhdx.loading import load_image
from vblk.formats.vhdx.locator import Candidate, Found, ParentLocator, parent_candidates
from vblk.formats.vhdx.mapping import Pages

__all__ = [
    "Candidate",
    "CheckReport",
    "DirtyLog",
    "Finding",
    "Found",
    "Pages",
    "ParentLocator",
    "Severity",
    "VhdxImage",
    "check_image",
    "load_image",
    "parent_candidates",
    "scan_image",
]
