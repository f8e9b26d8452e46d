"""VHDX: parsing, mapping and checking, all in memory.

Source: [MS-VHDX], Microsoft's Open Specification of the Virtual Hard Disk v2 format.
"""

from typing import TYPE_CHECKING

from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.image import DirtyLog, VhdxImage
from vblk.formats.vhdx.loading import load_image
from vblk.formats.vhdx.locator import Candidate, Found, ParentLocator, parent_candidates
from vblk.formats.vhdx.mapping import Pages

if TYPE_CHECKING:
    from vblk.formats.vhdx.check import CheckReport, check_image, scan_image

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


def __getattr__(name: str) -> object:
    """Load the check when one of its names is first asked for: most commands ask for none."""
    if name in ("CheckReport", "check_image", "scan_image"):
        from vblk.formats.vhdx import check

        return getattr(check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
