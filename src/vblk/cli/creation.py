"""Images that commands make: from a format and its `-o` to what is to be made.

Owns: QEMU's prints of options, and its words for those that make no sense, for a
backing file, and for targets where nothing can be made. What the options of a
format are, the format says (`vblk.graph.creation`).
"""

import os
from dataclasses import dataclass
from typing import Any

from vblk.cli.failure import Failure, could_not_open
from vblk.creating import creator_of
from vblk.errors import BlockError, OptionError
from vblk.graph.creation import Backing, Creator, FileOptions, NewImage, Wish
from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules
from vblk.jobs.target import Target
from vblk.opening import open_image
from vblk.options import CreateOptions, NodeOptions, bind_create, parse_create_options, parse_filename
from vblk.options.creation import announcement, help_lines, option_names
from vblk.protocols.remote_files import MAKERS

_LOCAL = (None, "file", "host_device")


def read_options(texts: tuple[str, ...]) -> CreateOptions:
    """Read the lists given by `-o`.

    Raises:
        Failure: A list is malformed.
    """
    try:
        return parse_create_options(texts)
    except OptionError as error:
        raise Failure(error.message) from None


def required_creator(form: str, unknown: str | None = None) -> Creator[Any]:
    """Return what makes images of a format; `unknown` is the sentence for one that nobody knows.

    Raises:
        Failure: No such images are made; with QEMU's sentence.
    """
    try:
        return creator_of(form)
    except OptionError as error:
        raise Failure(unknown or error.message) from error
    except BlockError as error:
        raise Failure(error.message) from error


def options_help(form: str, *, with_file: bool) -> list[str]:
    """Return the help of `-o` for a format; `with_file`: its target is a local file.

    Raises:
        Failure: No such images are made.
    """
    options = required_creator(form).options
    if with_file:
        return ["Supported options:", *help_lines([options, FileOptions])]
    return [
        f"Supported {form} options:",
        *help_lines([options]),
        "",
        "The protocol level may support further options.",
        "Specify the target filename to include those options.",
    ]


@dataclass(slots=True)
class Request:
    """What `-o`, `-b` and `-F` say of a new image; `given` are the names of the options given."""

    form: str
    creator: Creator[Any]
    options: Any
    file: FileOptions
    given: set[str]
    backing_file: str | None
    backing_format: str | None

    @property
    def size(self) -> int | None:
        """The size that the options give, in bytes."""
        size: int | None = self.options.size
        return size

    def announced(self, name: str, size: int) -> str:
        """Return the line that announces a new image."""
        self.options.size = size
        texts = announcement(self.options, {*self.given, "size"}) + announcement(self.file, self.given)
        return f"Formatting '{name}', fmt={self.form}{texts}"

    async def opened_backing(
        self, graph: Graph, name: str, *, rules: ChainRules | None = None, chain: bool = True
    ) -> Handle | None:
        """Open the backing image that a new image `name` is to have, for reading.

        `chain` opens all images behind it too; without, it is opened only if the
        format cannot do without.

        Raises:
            Failure: It does not open.
        """
        if self.backing_file is None or not (chain or self.creator.opens_backing):
            return None
        path = beside(name, self.backing_file)
        try:
            return await open_image(graph, path, format=self.backing_format, backing=chain, rules=rules)
        except BlockError as error:
            (text,) = could_not_open(path, error).lines
            raise Failure(f"{text}\nCould not open backing image.") from error

    async def plan(self, graph: Graph, name: str, size: int, backing: Handle | None) -> NewImage:
        """Decide what is made under `name`, `size` bytes large, on the opened `backing`.

        The graph has the objects that the image may need.

        Raises:
            BlockError: It cannot be made so.
        """
        behind = None
        if self.backing_file is not None:
            node = None if backing is None else backing.node
            path = beside(name, self.backing_file)
            behind = Backing(self.backing_file, self.backing_format, path, node)
        target = target_of(name)
        path = target if isinstance(target, str) else name
        wish = Wish(path, size, self.options, self.file, behind, graph.objects)
        return await self.creator.plan(wish)


def request(form: str, values: dict[str, str], backing: str | None, backing_format: str | None) -> Request:
    """Check what was said of a new image.

    Raises:
        Failure: No such images are made, an option is unknown or has a wrong
            value, or the format has no backing files.
    """
    creator = required_creator(form)
    names = option_names(creator.options)
    given = dict(values)
    for option, value, what in (
        ("backing_file", backing, "Backing file"),
        ("backing_fmt", backing_format, "Backing file format"),
    ):
        if value is not None:
            if option not in names:
                raise Failure(f"{what} not supported for file format '{form}'")
            given[option] = value
    try:
        options = bind_create(_among(given, names, inside=True), creator.options)
        file = bind_create(_among(given, names, inside=False), FileOptions)
    except OptionError as error:
        raise Failure(error.message) from None
    behind, behind_format = given.get("backing_file"), given.get("backing_fmt")
    if behind is None and behind_format is not None:
        raise Failure("Backing format cannot be used without backing file")
    return Request(form, creator, options, file, set(given), behind, behind_format)


def _among(values: dict[str, str], names: set[str], *, inside: bool) -> dict[str, str]:
    return {name: value for name, value in values.items() if (name in names) is inside}


def beside(name: str, backing: str) -> str:
    """Return where the backing file of an image `name` is, which counts from the image's folder."""
    if os.path.isabs(backing) or ":" in backing.partition("/")[0]:
        return backing
    return os.path.join(os.path.dirname(name), backing)


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


def target_of(name: str) -> Target:
    """Return the path of the local file that a target's name means, or what leads to one elsewhere.

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
        if below.driver in MAKERS:
            return below
        if below.driver not in (None, "raw", *_LOCAL):
            raise Failure(f"Protocol driver '{below.driver}' does not support image creation")
        below = below.children.get("file")
    raise could_not_open(name, BlockError("the name does not lead to a file"))
