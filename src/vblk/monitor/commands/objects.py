"""Commands on the objects that options refer to: secrets, TLS credentials, throttle groups.

Owns: nothing; the kinds of object are `vblk.objects`'s.
"""

from dataclasses import dataclass
from typing import Any

from vblk.monitor.arguments import Reader
from vblk.monitor.daemon import Daemon
from vblk.monitor.introspection import Introspection
from vblk.monitor.reflection import members_of
from vblk.monitor.schema import JobId
from vblk.monitor.table import CommandTable
from vblk.objects import add_object, object_kinds
from vblk.options.model import Empty, Scalar, flattened

TABLE = CommandTable()


@dataclass(slots=True)
class ObjectOptions:
    """The options of an object, under dotted names."""

    values: dict[str, Scalar]

    @classmethod
    def read_member(cls, reader: Reader, value: Any, name: str) -> "ObjectOptions":
        """Read the options of an object."""
        flat = flattened(reader.mapping(value, name))
        return cls({name: member for name, member in flat if not isinstance(member, Empty)})

    @classmethod
    def describe(cls, schema: Introspection) -> str:
        """Add the type of an object's options."""
        variants = {kind: schema.object(members_of(options)) for kind, options in object_kinds().items()}
        return schema.union("qom-type", variants, [{"name": "id", "type": "str"}])


@TABLE.command("object-add")
async def object_add(daemon: Daemon, arguments: ObjectOptions) -> None:
    """Make an object."""
    add_object(daemon.graph.objects, arguments.values, strict=True)


@TABLE.command("object-del")
async def object_del(daemon: Daemon, arguments: JobId) -> None:
    """Forget an object."""
    daemon.graph.objects.remove(arguments.id)
