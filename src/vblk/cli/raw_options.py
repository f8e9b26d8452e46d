"""`-o`: how a new image is to be made.

Owns: the options of raw images and of the files below them, their help, and the
words for those that are wrong. Must not create anything.
"""

from typing import Final, NamedTuple

from vblk.cli.failure import Failure
from vblk.cli.values import bounded_size
from vblk.errors import OptionError
from vblk.graph.node import Preallocation
from vblk.jobs.target import EXTENT_SIZE_HINT, NewImage
from vblk.options import CreateOptions, parse_bool, parse_create_options

_HELP_RAW: Final = ("  size=<size>            - Virtual disk size",)
_HELP_FILE: Final = (
    "  extent_size_hint=<size> - Extent size hint for the image file, 0 to disable",
    "  nocow=<bool (on/off)>  - Turn off copy-on-write (valid only on btrfs)",
    "  preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)",
    "  size=<size>            - Virtual disk size",
)
_NAMES: Final = ("size", "extent_size_hint", "nocow", "preallocation")


class RawOptions(NamedTuple):
    """How a raw image is made: `size` in bytes or None, and what is done for its space.

    Sizes are bytes.
    `given` has the options as they were written, for QEMU's "Formatting" line.
    """

    size: int | None
    preallocation: str
    nocow: bool
    extent_size_hint: int
    given: dict[str, str]

    def creation(self, size: int) -> NewImage:
        """Return how an image of `size` bytes is made.

        Raises:
            Failure: There is no such preallocation for files.
        """
        return NewImage(size, self.mode(), self.nocow, self.extent_size_hint)

    def mode(self) -> Preallocation:
        """Return the mode of preallocation.

        Raises:
            Failure: There is none of that name, or not for files.
        """
        try:
            mode = Preallocation(self.preallocation)
        except ValueError:
            raise Failure(f"invalid parameter value: {self.preallocation}") from None
        if mode is Preallocation.METADATA:
            raise Failure(f"Unsupported preallocation mode: {self.preallocation}")
        return mode

    def formatting(self, name: str, form: str, size: int) -> str:
        """Return the line that announces a new image."""
        others = "".join(f" {key}={self.given[key]}" for key in sorted(self.given) if key != "size")
        return f"Formatting '{name}', fmt={form} size={size}{others}"


def read_options(texts: tuple[str, ...]) -> CreateOptions:
    """Read the lists given by `-o`.

    Raises:
        Failure: A list is malformed.
    """
    try:
        return parse_create_options(texts)
    except OptionError as error:
        raise Failure(error.message) from None


def raw_options(values: dict[str, str]) -> RawOptions:
    """Check what was said of a raw image.

    Raises:
        Failure: An option is unknown, or asks for what this version cannot do.
    """
    for name in values:
        if name not in _NAMES:
            raise Failure(f"Invalid parameter '{name}'")
    size = bounded_size(values["size"], "image size") if "size" in values else None
    hint = values.get("extent_size_hint")
    return RawOptions(
        size,
        values.get("preallocation", "off"),
        _switch(values, "nocow"),
        EXTENT_SIZE_HINT if hint is None else bounded_size(hint, "extent size hint", 0, (1 << 32) - 1),
        dict(values),
    )


def _switch(values: dict[str, str], name: str) -> bool:
    try:
        return parse_bool(values.get(name, "off"))
    except OptionError as error:
        raise Failure(f"Parameter '{name}' expects 'on' or 'off'") from error


def options_help(form: str, *, with_file: bool) -> list[str]:
    """Return the help of `-o` for a format; `with_file`: its target is a local file."""
    if with_file:
        return ["Supported options:", *_HELP_FILE]
    own = _HELP_FILE if form == "file" else _HELP_RAW
    return [
        f"Supported {form} options:",
        *own,
        "",
        "The protocol level may support further options.",
        "Specify the target filename to include those options.",
    ]
