"""Opening the images that a command names, in the ways that every verb shares.

Owns: the options common to all verbs that read, and the words for an image that
does not open. Must not know what a verb does with the image.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click

from vblk.cli.command import flag, option
from vblk.cli.console import Console
from vblk.cli.failure import Failure, could_not_open
from vblk.cli.objects import objects_of, objects_option
from vblk.cli.values import SOURCE_CACHE_TYPE, PathMapType
from vblk.errors import BlockError
from vblk.graph.edge import Permission
from vblk.graph.gate import DenyGate, gate_of
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.objects import Objects
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules
from vblk.opening import open_image
from vblk.options import NodeOptions, parse_filename, parse_image_opts
from vblk.wording import GUESSED


@dataclass(slots=True)
class ImageArguments:
    """What every verb that opens an image can be told. `operands` are not options."""

    operands: tuple[str, ...]
    format: str | None
    image_opts: bool
    objects: tuple[str, ...]
    force_share: bool
    source_cache: str | None
    strict: bool
    parent: str | None
    parent_dirs: tuple[str, ...]
    path_map: tuple[tuple[str, str], ...]
    ignore_linkage: bool
    deny_implicit: bool

    def rules(self) -> ChainRules:
        """Return what was said about parents."""
        return ChainRules(self.parent, self.parent_dirs, self.path_map, self.ignore_linkage, self.strict)

    def check(self) -> Objects:
        """Refuse what contradicts itself; return the objects that were given.

        Raises:
            Failure: Always in one sentence.
        """
        if self.image_opts and self.format is not None:
            raise Failure("--image-opts and --format are mutually exclusive")
        return objects_of(self.objects)

    def one_operand(self) -> str:
        """Return the only operand, the image's name."""
        if len(self.operands) != 1:
            raise Failure("Expecting one image file name", hint=True)
        return self.operands[0]


def image_options() -> list[click.Option]:
    """Declare the options of `ImageArguments`."""
    return [
        option("-f", "--format", "format", metavar="FMT", help="Format of the image; probed when not given."),
        flag("--image-opts", help="Image names are options: driver=vhdx,file.filename=a.vhdx"),
        objects_option(),
        flag("-U", "--force-share", help="Open even though another process writes to the image."),
        option(
            "-T",
            "source_cache",
            metavar="CACHE",
            type=SOURCE_CACHE_TYPE,
            help="Cache mode for reading: none, writeback, writethrough, directsync or unsafe.",
        ),
        flag("--strict", help="Refuse a VHDX whose log would have to be replayed."),
        option("--parent", metavar="PATH", help="The image's parent, in place of the one it names."),
        option(
            "--parent-dir",
            "parent_dirs",
            metavar="DIR",
            multiple=True,
            help="Look for parents in DIR too, and trust it. May be repeated.",
        ),
        option(
            "--path-map",
            "path_map",
            metavar="FROM=TO",
            multiple=True,
            type=PathMapType(),
            help=r"Where a Windows path is here: 'D:\vm=/mnt/vm'. May be repeated.",
        ),
        flag("--ignore-linkage", help="Accept a parent whose identity does not match."),
        flag("--deny-implicit", help="Open no file that an image names: for images one does not trust."),
    ]


@asynccontextmanager
async def image_graph(arguments: ImageArguments, console: Console) -> AsyncGenerator[Graph]:
    """Yield the graph of a command, with the gate that its user asked for; closes it."""
    objects = arguments.check()
    gate = DenyGate() if arguments.deny_implicit else gate_of(console.name)
    async with Graph(gate=gate, objects=objects) as graph:
        yield graph


def named_options(name: str, *, image_opts: bool, format: str | None, console: Console) -> NodeOptions:
    """Return the typed options behind a name.

    Raises:
        Failure: The name cannot be right.
    """
    if image_opts:
        try:
            return parse_image_opts(name, warn=console.warn)
        except BlockError as error:
            raise Failure(error.message) from error
    try:
        return parse_filename(name, format=format)
    except BlockError as error:
        raise could_not_open(name, error) from error


async def open_named(
    graph: Graph,
    name: str,
    arguments: ImageArguments,
    console: Console,
    *,
    format: str | None = None,
    read_only: bool = True,
    cache: str | None = None,
    backing: bool = True,
    shared: Permission = Permission.ALL,
) -> Handle:
    """Open the image that a user named, and warn about what was guessed.

    Args:
        graph: The command's graph.
        name: A file name, or options with `--image-opts`.
        arguments: The common options.
        console: Where warnings go.
        format: The image's format; the common option's when None.
        read_only: False opens for writing.
        cache: The cache mode; the common option's when None.
        backing: Whether the chain behind the image is opened too.
        shared: What others may do meanwhile.

    Raises:
        Failure: The image does not open; the sentence says why.
    """
    wanted = format if format is not None else arguments.format
    options = named_options(name, image_opts=arguments.image_opts, format=wanted, console=console)
    try:
        handle = await open_image(
            graph,
            options,
            read_only=read_only,
            cache=cache or arguments.source_cache,
            force_share=arguments.force_share,
            backing=backing,
            rules=arguments.rules(),
            shared=shared,
        )
    except BlockError as error:
        raise could_not_open(name, error) from error
    if options.driver is None and not handle.read_only and handle.node.driver == "raw":
        console.plain_message(GUESSED.format(name))
    return handle


def chain_of(node: Node) -> Sequence[Node]:
    """Return the images of a chain, the top first."""
    from vblk.graph.edge import Role

    images: list[Node] = []
    below: Node | None = node
    while below is not None:
        images.append(below)
        below = below.child(Role.BACKING)
    return images
