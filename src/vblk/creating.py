"""Which module makes the images of which format.

Owns: the table, and the words for formats in which no images are made. A format's
creation module has `CREATOR`; it is imported when the format is first named.
"""

from importlib import import_module
from typing import Any, Final

from vblk.errors import OptionError, Unsupported
from vblk.graph.creation import Creator
from vblk.opening import FILTERS, FORMATS, KNOWN_ELSEWHERE, PROTOCOLS

CREATORS: Final = {
    "file": "vblk.protocols.file_create",
    "luks": "vblk.drivers.luks_create",
    "qcow2": "vblk.drivers.qcow2_create",
    "raw": "vblk.drivers.raw_create",
    "vhdx": "vblk.drivers.vhdx_create",
}
NEVER_CREATED: Final = ("bochs", "cloop", "dmg")
"""Formats in which nobody makes images; QEMU has a sentence for them."""


def creator_of(form: str) -> Creator[Any]:
    """Return what makes images of a format.

    Raises:
        Unsupported: Nobody makes such images, or not this version.
        OptionError: There is no such format.
    """
    module = CREATORS.get(form)
    if module is not None:
        creator: Creator[Any] = import_module(module).CREATOR
        return creator
    if form in NEVER_CREATED:
        raise Unsupported(f"Format driver '{form}' does not support image creation")
    if form in FORMATS or form in PROTOCOLS or form in FILTERS or form in KNOWN_ELSEWHERE:
        raise Unsupported(f"creating images of the format '{form}' is not supported in this version of vblk")
    raise OptionError(f"Unknown file format '{form}'")
