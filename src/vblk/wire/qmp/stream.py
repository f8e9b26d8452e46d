"""From the bytes of a QMP client to JSON values, one after the other.

Owns: where a value ends, what happens to bytes that are none, and the bounds of
what is kept meanwhile. It knows nothing of commands.

Ordering rule: values and faults come out in the order of their bytes. After a
fault the tokens read so far are forgotten; after a byte that belongs to no
token everything is skipped until a mark or a control character.

Source: QEMU's documentation, "QEMU Machine Protocol", section on input, and the
answers of qemu-storage-daemon 7.2.
"""

import codecs
import re
from collections.abc import Iterator
from typing import Final

from vblk.options.jsontext import DEPTH_MAX, STRAY, TOKEN, Json, JsonError, Token, first_value

VALUE_MAX: Final = 1 << 20
"""The longest value that is read, in characters."""

TOKENS_MAX: Final = 1 << 17
"""The most tokens of one value."""

_ATOM_MAX: Final = 1024
"""The longest number or keyword."""

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_ATOM: Final = re.compile(r"[-+.0-9A-Za-z]+")
_IN_STRING: Final = {
    '"': re.compile(r'(?:[^"\\\x00-\x1f\udcfe\udcff]|\\[^\x00-\x1f\udcfe\udcff])*'),
    "'": re.compile(r"(?:[^'\\\x00-\x1f\udcfe\udcff]|\\[^\x00-\x1f\udcfe\udcff])*"),
}
_SKIPPED: Final = re.compile(r"[^\[\]{}:,\x00-\x1f]*")
_LONE_BYTE: Final = re.compile("[\udc80-\udcff]")
_MARKS: Final = {"{": 1, "[": 1, "}": -1, "]": -1, ":": 0, ",": 0}

Item = tuple[Json, None] | tuple[None, str]
"""A value, or the sentence about a fault."""


class JsonStream:
    """Cuts a client's bytes into values.

    Concurrency: pure; belongs to one connection.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._pending = ""
        self._searched = 0
        self._skipping = False
        self._forget()

    def _forget(self) -> None:
        self._tokens: list[Token] = []
        self._length = 0
        self._braces = 0
        self._brackets = 0

    def feed(self, data: bytes) -> Iterator[Item]:
        """Take in bytes; yield the values and faults that they complete."""
        text = self._pending + self._decode(data)
        position = 0
        while True:
            if self._skipping:
                found = _SKIPPED.match(text, position)
                position = found.end() if found else position
                self._skipping = position == len(text)
            found = _SPACE.match(text, position)
            position = found.end() if found else position
            if position == len(text):
                break
            token, end = self._next(text, position)
            if end is None:
                break
            position = end
            self._searched = 0
            if isinstance(token, str):
                self._forget()
                yield None, token
            else:
                yield from self._take(token)
        self._pending = text[position:]

    def _next(self, text: str, position: int) -> tuple[Token | str, int | None]:
        """Return the token or fault at `position` and where it ends; None: more bytes are needed."""
        first = text[position]
        if first in _MARKS:
            return (first, first), position + 1
        if first in _IN_STRING:
            return self._string(text, position)
        found = _ATOM.match(text, position)
        if found is None:
            return self._stray(text, position, position + 1)
        if found.end() - position > _ATOM_MAX:
            return "JSON token size limit exceeded", found.end()
        token = TOKEN.match(text, position)
        if found.end() == len(text) and (token is None or token.end() == len(text)):
            return "", None
        if token is None:
            stray = STRAY.match(text, position)
            return self._stray(text, position, stray.end() if stray else position + 1)
        return (token.lastgroup or "", token[0]), token.end()

    def _string(self, text: str, position: int) -> tuple[Token | str, int | None]:
        found = _IN_STRING[text[position]].match(text, max(position + 1, position + self._searched))
        end = found.end() if found else position + 1
        if self._length + end - position > VALUE_MAX:
            return "JSON token size limit exceeded", end
        if end == len(text) or (text[end] == "\\" and end + 1 == len(text)):
            self._searched = end - position
            return "", None
        if text[end] != text[position]:
            # What ends it too early: a control character, or a byte that no UTF-8 has.
            return self._stray(text, position, end + 1 + (text[end] == "\\"))
        return ("string", text[position : end + 1]), end + 1

    def _stray(self, text: str, position: int, end: int) -> tuple[str, int]:
        self._skipping = not text[end - 1] < " "
        shown = _LONE_BYTE.sub("\ufffd", text[position:end].partition("\0")[0])
        if shown and not shown[0].isascii():
            shown = "\ufffd"  # QEMU looks at bytes
        return f"JSON parse error, stray '{shown}'", end

    def _take(self, token: Token) -> Iterator[Item]:
        kind, spelling = token
        self._braces += _MARKS[kind] if kind in "{}" else 0
        self._brackets += _MARKS[kind] if kind in "[]" else 0
        self._length += len(spelling)
        fault = self._over_limit()
        if fault is not None:
            self._forget()
            yield None, fault
            return
        self._tokens.append(token)
        if (self._braces > 0 or self._brackets > 0) and self._braces >= 0 and self._brackets >= 0:
            return
        tokens = self._tokens
        self._forget()
        try:
            if any(kind == "string" and _LONE_BYTE.search(spelling) for kind, spelling in tokens):
                raise JsonError("JSON parse error, invalid UTF-8 sequence in string")
            value = first_value(tokens)
        except JsonError as error:
            yield None, str(error)
            return
        yield value, None

    def _over_limit(self) -> str | None:
        if self._braces + self._brackets > DEPTH_MAX:
            return "JSON nesting depth limit exceeded"
        if len(self._tokens) >= TOKENS_MAX:
            return "JSON token count limit exceeded"
        return "JSON token size limit exceeded" if self._length > VALUE_MAX else None
