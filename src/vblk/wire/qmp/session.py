"""One client's QMP session, without its socket.

Owns: the greeting, the negotiation of capabilities, what makes a request, and the
texts of replies and events. It knows no command: names of commands are judged by
whoever carries them out.

Ordering rule: requests are judged in the order in which they came, when they are
carried out, for a request before may have ended the negotiation.

Source: QEMU's documentation, "QEMU Machine Protocol", and the answers of
qemu-storage-daemon 7.2.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vblk.options.jsontext import Json
from vblk.wire.qmp.stream import JsonStream
from vblk.wire.qmp.text import encode_json

NEGOTIATION: Final = "qmp_capabilities"
OUT_OF_BAND: Final = "oob"

_NO_ID: Final = object()


class ErrorClass(enum.Enum):
    """QEMU's classes of errors."""

    GENERIC = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"
    DEVICE_NOT_ACTIVE = "DeviceNotActive"
    DEVICE_NOT_FOUND = "DeviceNotFound"
    KVM_MISSING_CAP = "KVMMissingCap"


class QmpError(Exception):
    """A command is refused, or failed: a sentence and a class."""

    def __init__(self, text: str, kind: ErrorClass = ErrorClass.GENERIC) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Request:
    """One thing that a client sent. `fault` is set where it is no command."""

    command: str = ""
    arguments: Any = None
    out_of_band: bool = False
    id: Any = _NO_ID
    fault: str | None = None


class QmpSession:
    """The state of one connection.

    `version` is what `query-version` answers. With `pretty` texts are on many
    lines. `oob` offers the execution out of band.

    Concurrency: pure.
    """

    def __init__(self, version: Mapping[str, Any], *, pretty: bool = False, oob: bool = True) -> None:
        self.negotiated = False
        self.out_of_band = False
        self._version = version
        self._pretty = pretty
        self._offered = [OUT_OF_BAND] if oob else []
        self._stream = JsonStream()

    def greeting(self) -> bytes:
        """Return what the server says first."""
        return self._text({"QMP": {"version": self._version, "capabilities": self._offered}})

    def receive(self, data: bytes) -> Iterator[Request]:
        """Take in bytes of the client; yield the requests that they complete."""
        for value, fault in self._stream.feed(data):
            yield self._request(value) if fault is None else Request(fault=fault)

    def _request(self, value: Json) -> Request:
        if not isinstance(value, dict):
            return Request(fault="QMP input must be a JSON object")
        id = value.pop("id", _NO_ID)
        command: tuple[str, str] | None = None
        arguments: Any = None
        for name, member in value.items():
            if name == "execute" or (name == "exec-oob" and self.out_of_band):
                if not isinstance(member, str):
                    return Request(id=id, fault=f"QMP input member '{name}' must be a string")
                if command is not None:
                    return Request(id=id, fault="QMP input member 'execute' clashes with 'exec-oob'")
                command = name, member
            elif name == "arguments":
                if not isinstance(member, dict):
                    return Request(id=id, fault="QMP input member 'arguments' must be an object")
                arguments = member
            else:
                return Request(id=id, fault=f"QMP input member '{name}' is unexpected")
        if command is None:
            return Request(id=id, fault="QMP input lacks member 'execute'")
        return Request(command[1], arguments or {}, command[0] == "exec-oob", id)

    def admit(self, request: Request) -> None:
        """Refuse what is no request, or not the right one before and after the negotiation.

        Raises:
            QmpError: With the class that QEMU gives.
        """
        if request.fault is not None:
            raise QmpError(request.fault)
        if request.command == NEGOTIATION and self.negotiated:
            text = "Capabilities negotiation is already complete, command ignored"
            raise QmpError(text, ErrorClass.COMMAND_NOT_FOUND)
        if request.command != NEGOTIATION and not self.negotiated:
            text = f"Expecting capabilities negotiation with '{NEGOTIATION}'"
            raise QmpError(text, ErrorClass.COMMAND_NOT_FOUND)

    def negotiate(self, enable: "list[str]") -> None:
        """Switch on capabilities, and end the negotiation.

        Raises:
            QmpError: One was not offered.
        """
        missing = [name for name in enable if name not in self._offered]
        if missing:
            raise QmpError(f"Capability {', '.join(missing)} not available")
        self.out_of_band = OUT_OF_BAND in enable
        self.negotiated = True

    def result(self, request: Request, value: Any) -> bytes:
        """Return the reply to a command that went well."""
        return self._reply(request, {"return": value})

    def failure(self, request: Request, error: QmpError) -> bytes:
        """Return the reply to a command that failed."""
        text = str(error).partition("\n")[0]  # hints are for people
        return self._reply(request, {"error": {"class": error.kind.value, "desc": text}})

    def event(self, name: str, data: Mapping[str, Any], nanoseconds: int) -> bytes:
        """Return the text of an event; `nanoseconds` is the time since the epoch."""
        seconds, rest = divmod(nanoseconds // 1000, 1_000_000)
        stamp = {"seconds": seconds, "microseconds": rest}
        return self._text({"timestamp": stamp, "event": name, **({"data": data} if data else {})})

    def _reply(self, request: Request, reply: dict[str, Any]) -> bytes:
        if request.id is not _NO_ID:
            reply["id"] = request.id
        return self._text(reply)

    def _text(self, value: Any) -> bytes:
        return encode_json(value, pretty=self._pretty).replace("\n", "\r\n").encode("ascii") + b"\r\n"
