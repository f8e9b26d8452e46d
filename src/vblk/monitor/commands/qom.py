"""Commands on the properties of objects, of which the limits of throttle groups can be changed.

Owns: the paths and names of properties.
"""

import dataclasses
from typing import Any

from vblk.errors import OptionError
from vblk.monitor.arguments import Reader
from vblk.monitor.daemon import Daemon
from vblk.monitor.schema import Object
from vblk.monitor.table import CommandTable
from vblk.runtime.throttling import ThrottleGroup, ThrottleLimits
from vblk.wire.qmp import ErrorClass, QmpError

TABLE = CommandTable()

_LIMITS = "limits"


class QomProperty(Object):
    """A property of an object; `path` is its id, or that behind `/objects/`."""

    path: str
    property: str


class QomValue(QomProperty):
    """The arguments of `qom-set`."""

    value: Any


def _group(daemon: Daemon, arguments: QomProperty) -> ThrottleGroup:
    """Return the throttle group whose limits are meant.

    Raises:
        QmpError: There is no such object, or it has no such property.
    """
    id = arguments.path.removeprefix("/objects/")
    if id not in daemon.graph.objects:
        raise QmpError(f"Device '{arguments.path}' not found", ErrorClass.DEVICE_NOT_FOUND)
    try:
        group = daemon.graph.objects.throttle_group(id)
    except OptionError:
        group = None
    if group is None or arguments.property != _LIMITS:
        kind = "object" if group is None else "throttle-group"
        raise QmpError(f"Property '{kind}.{arguments.property}' not found")
    return group


@TABLE.command("qom-get")
async def qom_get(daemon: Daemon, arguments: QomProperty) -> dict[str, Any]:
    """Show a property of an object."""
    limits = dataclasses.asdict(_group(daemon, arguments).limits)
    return {name.replace("_", "-"): value for name, value in reversed(limits.items())}


@TABLE.command("qom-set")
async def qom_set(daemon: Daemon, arguments: QomValue) -> None:
    """Change a property of an object: requests that wait go by the new limits."""
    group = _group(daemon, arguments)
    group.configure(Reader().object(arguments.value, ThrottleLimits, "limits"))
