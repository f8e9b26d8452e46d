"""`blockdev-create`: the making of images, as a job.

Owns: the options of what can be made, under QEMU's names, and the job. How images of
a format are made is its creator's.

Ordering rule: options that cannot be are refused at once; everything else that goes
wrong is how the job ended.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from vblk.aio.clock import LoopClock
from vblk.creating import creator_of
from vblk.drivers.vhdx_create import VhdxOptions
from vblk.errors import BlockError, OptionError
from vblk.formats.vhdx.layout import BLOCK_SIZE_MAX
from vblk.graph.creation import Backing, FileOptions, Wish
from vblk.graph.edge import WRITING
from vblk.graph.node import Node
from vblk.graph.registry import Graph
from vblk.graph.site import Request
from vblk.jobs.job import Job
from vblk.jobs.target import make_image
from vblk.monitor.arguments import Reader, joined, missing, refuse_rest, taken, wrong_type
from vblk.monitor.blockdev import Blockdev, check_node, node_options
from vblk.monitor.daemon import Daemon
from vblk.monitor.introspection import Introspection
from vblk.monitor.reflection import members_of
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.opening import hand_down, open_image, open_node
from vblk.options import NodeOptions, NodeReference
from vblk.protocols.file import CreateOptions, create_file
from vblk.units import MIB, is_power_of_two
from vblk.wire.qmp import QmpError

TABLE = CommandTable()

CREATED: Final = ("file", "luks", "qcow2", "vhdx")
"""The drivers whose images can be made."""

_JOB_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_VERSIONS: Final = ("v2", "v3")


class FileName(Object):
    """The name of a new file."""

    filename: str


@dataclass(slots=True)
class NewImageOptions:
    """What is made: a file, or an image in the node `file`."""

    driver: str
    options: Any
    filename: str = ""
    file: NodeOptions | NodeReference | None = None
    given: frozenset[str] = frozenset()

    @classmethod
    def read_member(cls, reader: Reader, value: Any, name: str) -> "NewImageOptions":
        """Read the options of a new image."""
        rest = reader.mapping(value, name)
        driver = reader.choice(taken(rest, "driver", name), CREATED, joined(name, "driver"))
        if driver == "file":
            filename = reader.members(rest, FileName, name)["filename"]
            made = cls(driver, CreateOptions(**reader.members(rest, CreateOptions, name)), filename)
        else:
            file = _file(reader, taken(rest, "file", name), joined(name, "file"))
            if "size" not in rest:
                raise missing(joined(name, "size"))
            if driver == "qcow2" and "version" in rest:
                rest["compat"] = reader.choice(rest.pop("version"), _VERSIONS, joined(name, "version"))
            options = creator_of(driver).options
            given = frozenset(rest)
            made = cls(driver, options(**reader.members(rest, options, name)), file=file, given=given)
        refuse_rest(rest, name)
        return made

    @classmethod
    def describe(cls, schema: Introspection) -> str:
        """Add the type of the options of new images."""
        reference = {"name": "file", "type": schema.alternate([schema.type(Blockdev), "str"])}
        variants = {"file": schema.object([*members_of(FileName), *members_of(CreateOptions)])}
        for driver in CREATED[1:]:
            own = schema.members(
                member._replace(required=member.required or member.name == "size")
                for member in members_of(creator_of(driver).options)
            )
            if driver == "qcow2":
                own.append({"name": "version", "default": None, "type": schema.enum(_VERSIONS)})
            variants[driver] = schema.object_of([reference, *own])
        return schema.union("driver", variants, [])


def _file(reader: Reader, value: Any, name: str) -> NodeOptions | NodeReference:
    if isinstance(value, str):
        return NodeReference(value)
    if not isinstance(value, dict):
        raise wrong_type(name, "BlockdevRef")
    described = reader.mapping(value, name)
    check_node(reader, described, name)
    return node_options(described)


class CreateJob(Job):
    """Makes one image."""

    type: ClassVar[str] = "create"

    def __init__(self, id: str, daemon: Daemon, wanted: NewImageOptions) -> None:
        super().__init__(id, listener=daemon.job_event, clock=LoopClock(), auto_dismiss=False)
        self._graph = daemon.graph
        self._wanted = wanted
        self.total = 1

    async def run(self) -> None:
        """Make the image."""
        try:
            await _make(self._graph, self._wanted)
        finally:
            self.current = 1


async def _make(graph: Graph, wanted: NewImageOptions) -> None:
    if wanted.file is None:
        await create_file(graph.engine, wanted.filename, wanted.options)
        return
    if isinstance(wanted.file, NodeReference):
        node = graph.find(wanted.file.name)
    else:
        node = await open_node(graph, hand_down(wanted.file), Request(read_only=False))
    try:
        handle = graph.hold(node, "the making of an image", WRITING)
    except BlockError:
        await graph.discard_unused(node)
        raise
    try:
        await _make_in(graph, node, wanted)
    finally:
        await graph.release(handle)


async def _make_in(graph: Graph, leaf: Node, wanted: NewImageOptions) -> None:
    options = wanted.options
    if wanted.driver == "vhdx":
        _refuse_inexact(options, wanted.given)
    creator = creator_of(wanted.driver)
    name = getattr(options, "backing_file", None)
    behind = None
    if name is not None and creator.opens_backing:
        behind = await open_image(graph, name, format=options.backing_fmt)
    try:
        node = None if behind is None else behind.node
        backing = None if name is None else Backing(name, options.backing_fmt, name, node)
        wish = Wish(leaf.filename, options.size, options, backing=backing, objects=graph.objects)
        image = await creator.plan(wish)
        await image.create(leaf, durable=True, unfinished=False)
    finally:
        if behind is not None:
            await graph.release(behind)


def _refuse_inexact(options: VhdxOptions, given: frozenset[str]) -> None:
    """Refuse sizes that qemu-img would round: QMP does not.

    Raises:
        OptionError: In QEMU's words.
    """
    block, log = options.block_size, options.log_size
    if "block-size" in given:
        if block < MIB or block % MIB:
            raise OptionError("Block size must be a multiple of 1 MB")
        if not is_power_of_two(block):
            raise OptionError("Block size must be a power of two")
        if block > BLOCK_SIZE_MAX:
            raise OptionError(f"Block size must not exceed {BLOCK_SIZE_MAX}")
    if log < MIB or log % MIB:
        raise OptionError("Log size must be a multiple of 1 MB")
    if log >= 1 << 32:
        raise OptionError("Log size must be smaller than 4 GB")


class BlockdevCreate(Object):
    """The arguments of `blockdev-create`."""

    job_id: str
    options: NewImageOptions


@TABLE.command("blockdev-create")
async def blockdev_create(daemon: Daemon, arguments: BlockdevCreate) -> None:
    """Begin to make an image; the job stays until it is dismissed."""
    require_new_job(daemon, arguments.job_id)
    job = CreateJob(arguments.job_id, daemon, arguments.options)
    daemon.jobs[job.id] = job
    job.start()
    await asyncio.sleep(0)  # so that it runs when the reply is sent


def require_new_job(daemon: Daemon, id: str) -> None:
    """Refuse an id that no job can have, or that one has.

    Raises:
        QmpError: In QEMU's words.
    """
    if _JOB_ID.fullmatch(id) is None:
        raise QmpError(f"Invalid job ID '{id}'")
    if id in daemon.jobs:
        raise QmpError(f"Job ID '{id}' already in use")


async def make_beside(
    daemon: Daemon, filename: str, format: str, size: int, backing: Node | None = None
) -> None:
    """Make an image for a command that goes on to use it, standing on `backing` if that is given.

    Raises:
        QmpError: The format's images stand on none.
        BlockError: It cannot be made.
    """
    creator = creator_of(format)
    options, behind = creator.options(size=size), None
    if backing is not None:
        if not hasattr(options, "backing_file"):
            raise QmpError(f"Backing file not supported for file format '{format}'")
        options = creator.options(size=size, backing_file=backing.filename, backing_fmt=backing.driver)
        behind = Backing(backing.filename, backing.driver, backing.filename, backing)
    wish = Wish(filename, size, options, FileOptions(), behind, daemon.graph.objects)
    await make_image(daemon.graph, filename, await creator.plan(wish))
