"""Errors of the library in the words and classes of QMP.

Owns: the one table from errors to classes.
"""

from vblk.errors import BlockError, ImageError, WrongFormat
from vblk.wire.qmp import QmpError


def qmp_error(error: BlockError) -> QmpError:
    """Return what a client is told of an error."""
    text = error.message
    if error.offset is not None and isinstance(error, ImageError) and not isinstance(error, WrongFormat):
        text += f" (offset {error.offset:#x})"
    return QmpError(text)
