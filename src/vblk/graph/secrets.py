"""Secrets: passphrases by the names under which options refer to them.

Owns: the bytes. They are in no message, no representation and no report.
"""

from collections.abc import Mapping

from vblk.errors import OptionError


class Secrets:
    """Named secrets of one graph."""

    def __init__(self, secrets: Mapping[str, bytes] | None = None) -> None:
        """Keep `secrets` by their names."""
        self._by_name = dict(secrets or {})

    def add(self, name: str, secret: bytes) -> None:
        """Keep a secret under a name.

        Raises:
            OptionError: Another one has this name.
        """
        if name in self._by_name:
            raise OptionError(f"there is a secret with id '{name}' already")
        self._by_name[name] = secret

    def find(self, name: str) -> bytes:
        """Return the secret of that name.

        Raises:
            OptionError: There is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise OptionError(f"No secret with id '{name}'") from None
