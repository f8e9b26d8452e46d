"""Images that commands make: which formats, under which names.

Owns: the way from a name and a format to a new raw image, and QEMU's words when
there is none. How files come to be is `vblk.jobs.target`.
"""

from vblk.cli.failure import Failure, could_not_open
from vblk.errors import BlockError
from vblk.opening import FILTERS, FORMATS, KNOWN_ELSEWHERE, PROTOCOLS
from vblk.options import NodeOptions, parse_filename

CREATABLE = ("raw", "file")
NEVER_CREATED = ("bochs", "cloop", "dmg")
"""Formats in which nobody makes images; QEMU has a sentence for them."""
_LOCAL = (None, "file", "host_device")


def require_creatable(form: str, unknown: str = "Unknown file format '{}'") -> None:
    """Refuse a format in which this version makes no images.

    Args:
        form: The format's name.
        unknown: The sentence for one that nobody knows, with `{}` for its name.

    Raises:
        Failure: With QEMU's sentence.
    """
    if form in CREATABLE:
        return
    if form in NEVER_CREATED:
        raise Failure(f"Format driver '{form}' does not support image creation")
    if form in FORMATS or form in PROTOCOLS or form in FILTERS or form in KNOWN_ELSEWHERE:
        raise Failure(f"creating images of the format '{form}' is not supported in this version of vblk")
    raise Failure(unknown.replace("{}", form))


def require_no_backing(form: str, backing: str | None, backing_format: str | None) -> None:
    """Refuse a backing file: no format that this version makes has one.

    Raises:
        Failure: With QEMU's sentence.
    """
    if backing is not None:
        raise Failure(f"Backing file not supported for file format '{form}'")
    if backing_format is not None:
        raise Failure(f"Backing file format not supported for file format '{form}'")


def require_known_protocol(name: str) -> None:
    """Refuse a name whose prefix is nobody's.

    Raises:
        Failure: With QEMU's sentence.
    """
    if name:
        try:
            parse_filename(name, format="raw")
        except BlockError as error:
            raise Failure(error.message) from error


def local_target(name: str) -> str:
    """Return the path of the local file that a target's name means.

    Raises:
        Failure: The name is of a protocol that makes no files.
    """
    try:
        options = parse_filename(name, format="raw")
    except BlockError as error:
        if not name:  # QEMU says of the empty name what the system says
            raise Failure(f"Could not create '{name}': No such file or directory") from error
        raise Failure(error.message) from error
    below: object = options
    while isinstance(below, NodeOptions):
        if below.driver in _LOCAL and "filename" in below.own:
            return str(below.own["filename"])
        if below.driver not in (None, "raw", *_LOCAL):
            raise Failure(f"Protocol driver '{below.driver}' does not support image creation")
        below = below.children.get("file")
    raise could_not_open(name, BlockError("the name does not lead to a file"))
