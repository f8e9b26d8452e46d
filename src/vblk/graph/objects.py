"""What a graph is given beside its nodes: secrets, TLS credentials and others, by their ids.

Owns: the one space of ids in which options refer to them, and QEMU's words for an
id that leads nowhere. A secret is in no message, no representation and no report.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from vblk.aio.tls import Authorization, Endpoint, TlsCredentials
from vblk.errors import OptionError
from vblk.runtime.throttling import ThrottleGroup

T = TypeVar("T")

_ID: Final = r"[A-Za-z][A-Za-z0-9._-]*"


class Objects:
    """Objects of one graph."""

    def __init__(self, objects: Mapping[str, object] | None = None) -> None:
        """Keep `objects` by their ids; bytes are secrets."""
        self._by_id = dict(objects or {})

    def __contains__(self, id: object) -> bool:
        return id in self._by_id

    def of_kind(self, kind: type[T]) -> Iterator[tuple[str, T]]:
        """Iterate over the objects of one kind, with their ids."""
        return ((id, each) for id, each in list(self._by_id.items()) if isinstance(each, kind))

    def add(self, id: str, thing: object) -> None:
        """Keep an object under an id.

        Raises:
            OptionError: Another one has it, or no object can have it.
        """
        if not re.fullmatch(_ID, id):
            raise OptionError(
                "Parameter 'id' expects an identifier\n"
                "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
            )
        if id in self._by_id:
            raise OptionError(f"attempt to add duplicate property '{id}' to object (type 'container')")
        self._by_id[id] = thing

    def remove(self, id: str) -> object:
        """Forget an object and return it; whoever found it before keeps it.

        Raises:
            OptionError: There is none of this id, or nodes share it.
        """
        if id not in self._by_id:
            raise OptionError(f"object '{id}' not found")
        found = self._by_id[id]
        if isinstance(found, ThrottleGroup) and found.members:
            raise OptionError(f"object '{id}' is in use, can not be deleted")
        return self._by_id.pop(id)

    def secret(self, id: str) -> bytes:
        """Return a secret.

        Raises:
            OptionError: There is none of this id.
        """
        found = self._by_id.get(id)
        if not isinstance(found, bytes):
            raise OptionError(f"No secret with id '{id}'")
        return found

    def throttle_group(self, id: str) -> ThrottleGroup:
        """Return limits that nodes share.

        Raises:
            OptionError: There are none of this id.
        """
        found = self._by_id.get(id)
        if not isinstance(found, ThrottleGroup):
            raise OptionError(f"Throttle group '{id}' does not exist")
        return found

    def credentials(self, id: str, endpoint: Endpoint) -> TlsCredentials:
        """Return credentials for one end of TLS.

        Raises:
            OptionError: There are none, or they are for the other end.
        """
        if id not in self._by_id:
            raise OptionError(f"No TLS credentials with id '{id}'")
        found = self._by_id[id]
        if not isinstance(found, TlsCredentials):
            raise OptionError(f"Object with id '{id}' is not TLS credentials")
        if found.endpoint != endpoint:
            raise OptionError(f"Expected TLS credentials for a {endpoint} endpoint")
        return found

    def authorization(self, id: str) -> Authorization:
        """Return what says who may come.

        Raises:
            OptionError: There is none of this id.
        """
        found = self._by_id.get(id)
        if not isinstance(found, Authorization):
            raise OptionError(f"Cannot find QAuthZ object ID {id}")
        return found
