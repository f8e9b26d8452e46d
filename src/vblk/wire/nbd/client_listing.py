"""A handshake that chooses nothing: which exports a server has, and what it tells of them.

Owns: the order of the questions, and the bound on how many exports are asked about.

Source: proto.md, "Option types".
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from vblk.errors import PeerError, Unsupported
from vblk.wire.nbd.client_handshake import ClientHandshake
from vblk.wire.nbd.export import Export
from vblk.wire.nbd.numbers import STRING_MAX, HandshakeFlag, Option, OptionReply, shown

EXPORTS_MAX: Final = 1024
"""The most exports that are asked about."""


@dataclass(frozen=True, slots=True)
class ListedExport:
    """What a server tells of an export; `contexts` are None where it has not been asked."""

    name: str
    description: str
    export: Export
    contexts: tuple[str, ...] | None


class ClientListing(ClientHandshake):
    """One connection's questions. `export` is set, to an empty one, when all are answered."""

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__("", tls=tls)
        self.listed: list[ListedExport] = []

    def _negotiate(self) -> Generator[int, bytes, Export]:
        offered = yield from self._greeted()
        if offered is None or HandshakeFlag.FIXED_NEWSTYLE not in offered:
            raise Unsupported("Server does not support export lists")
        structured = yield from self._agreed(Option.STRUCTURED_REPLY)
        for name, description in (yield from self._names()):
            self._name = name
            export = Export()
            if not (yield from self._go(export, Option.INFO)):
                raise Unsupported("Server does not support export lists")
            contexts = (yield from self._contexts()) if structured else None
            self.listed.append(ListedExport(shown(name), shown(description), export, contexts))
        return Export()

    def _names(self) -> Generator[int, bytes, list[tuple[bytes, bytes]]]:
        answers = yield from self._answered(Option.LIST)
        names: list[tuple[bytes, bytes]] = []
        for kind, data in answers[:EXPORTS_MAX]:
            length = int.from_bytes(data[:4], "big")
            if kind != OptionReply.SERVER or length > min(len(data) - 4, STRING_MAX):
                raise PeerError(f"an export is listed by {len(data)} bytes of kind {kind}")
            names.append((data[4 : 4 + length], data[4 + length :]))
        return names

    def _contexts(self) -> Generator[int, bytes, tuple[str, ...]]:
        name = len(self._name).to_bytes(4, "big") + self._name
        answers = yield from self._answered(Option.LIST_META_CONTEXT, name + bytes(4))
        if any(kind != OptionReply.META_CONTEXT or len(data) < 4 for kind, data in answers):
            raise PeerError("the server lists contexts that are none")
        return tuple(shown(data[4:]) for _, data in answers)
