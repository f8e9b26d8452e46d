"""JSON as QEMU takes it, on its command line and in QMP: also with single-quoted strings.

Owns: the grammar, and the text form of nested options. Must not know what any
option means. Bounds: the text is at most `TEXT_MAX` characters, the nesting at
most `DEPTH_MAX`; whatever breaks these or the grammar is an `OptionError`, or a
`JsonError` for who brings tokens of his own.

The grammar is RFC 8259 with one addition: a string may stand in single quotes,
and then its double quotes need no escape; an escaped single quote is allowed
in both. All tokens are read before any is interpreted, so a character that
belongs to no token is reported before a fault of structure.
"""

import re
from typing import Final, NoReturn

from vblk.errors import OptionError

TEXT_MAX: Final = 1 << 20
DEPTH_MAX: Final = 64

Token = tuple[str, str]
"""The kind of a token and its spelling; a mark is its own kind."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

TOKEN: Final = re.compile(
    r"(?P<mark>[\[\]{},:])"
    r"""|(?P<string>"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*"|'(?:[^'\\\x00-\x1f]|\\[^\x00-\x1f])*')"""
    r"|(?P<float>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)(?![0-9.eE]))"
    r"|(?P<integer>-?(?:0|[1-9][0-9]*)(?![0-9.eE]))"
    r"|(?P<word>[a-z]+)"
)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
STRAY: Final = re.compile(
    r"-?0[0-9]|-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?.?|-.?"
    r"""|"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*\\?[\x00-\x1f]?|'(?:[^'\\\x00-\x1f]|\\[^\x00-\x1f])*\\?[\x00-\x1f]?|.""",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(?:u(?P<unit>.{0,4})|(?P<letter>.))", re.DOTALL)
_HEX: Final = re.compile(r"[0-9a-fA-F]{4}")
_LETTERS: Final = {
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    '"': '"',
    "'": "'",
    "\\": "\\",
    "/": "/",
}
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}


class JsonError(Exception):
    """What breaks the grammar, in QEMU's words."""


def parse_json_text(text: str) -> Json:
    """Read one JSON value.

    Integers outside -2^63 to 2^64 - 1, and numbers with a fraction or an
    exponent, become floats.

    Raises:
        OptionError: The text is not one value, too long or nested too deeply,
            or an object has the same key twice.
    """
    if len(text) > TEXT_MAX:
        raise OptionError(f"Could not parse the JSON options: longer than {TEXT_MAX} characters")
    try:
        reader = _Reader(_tokens(text))
        if not reader.tokens:
            raise JsonError("Expecting a JSON value")
        value = reader.value(0)
        if not reader.finished:
            raise JsonError("Expecting at most one JSON value")
    except JsonError as error:
        raise OptionError(f"Could not parse the JSON options: {error}") from None
    return value


def first_value(tokens: list[Token]) -> Json:
    """Read the value that stands first in a list of tokens.

    Raises:
        JsonError: There is none, or it breaks the grammar or nests too deeply.
    """
    return _Reader(tokens).value(0)


def _fail(reason: str) -> NoReturn:
    raise JsonError(f"JSON parse error, {reason}")


def _tokens(text: str) -> list[Token]:
    """Cut the text into tokens."""
    tokens: list[Token] = []
    position = _skip_space(text, 0)
    while position < len(text):
        found = TOKEN.match(text, position)
        if found is None:
            stray = STRAY.match(text, position)
            _fail(f"stray '{stray[0][:100] if stray else text[position]}'")
        kind = found.lastgroup or ""
        tokens.append((found[0] if kind == "mark" else kind, found[0]))
        position = _skip_space(text, found.end())
    return tokens


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


class _Reader:
    """Values from tokens, by recursive descent of bounded depth."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self._position = 0

    @property
    def finished(self) -> bool:
        return self._position == len(self.tokens)

    def _next(self) -> tuple[str, str]:
        if self.finished:
            _fail("premature EOI")
        self._position += 1
        return self.tokens[self._position - 1]

    def _try_mark(self, mark: str) -> bool:
        if self.finished:
            _fail("premature EOI")
        found = self.tokens[self._position][0] == mark
        self._position += found
        return found

    def value(self, depth: int) -> Json:
        kind, spelling = self._next()
        if kind in ("{", "["):
            if depth == DEPTH_MAX:
                _fail(f"nested deeper than {DEPTH_MAX}")
            return self._members(depth + 1) if kind == "{" else self._items(depth + 1)
        if kind == "string":
            return _unquote(spelling)
        if kind == "integer":
            return _integer(spelling)
        if kind == "float":
            return float(spelling)
        if kind == "word":
            if spelling not in _WORDS:
                _fail(f"invalid keyword '{spelling[:100]}'")
            return _WORDS[spelling]
        _fail("expecting value")

    def _items(self, depth: int) -> list[Json]:
        items: list[Json] = []
        if self._try_mark("]"):
            return items
        while True:
            items.append(self.value(depth))
            if self._try_mark("]"):
                return items
            if not self._try_mark(","):
                _fail("expected separator in list")

    def _members(self, depth: int) -> dict[str, Json]:
        members: dict[str, Json] = {}
        if self._try_mark("}"):
            return members
        while True:
            key = self.value(depth)
            if not isinstance(key, str):
                _fail("key is not a string in object")
            if not self._try_mark(":"):
                _fail("missing : in object pair")
            if key in members:
                _fail("duplicate key")
            members[key] = self.value(depth)
            if self._try_mark("}"):
                return members
            if not self._try_mark(","):
                _fail("expected separator in dict")


def _integer(spelling: str) -> int | float:
    if len(spelling) > 20:
        return float(spelling)
    value = int(spelling)
    return value if -(1 << 63) <= value < 1 << 64 else float(value)


def _unquote(spelling: str) -> str:
    body = spelling[1:-1]
    if "\\" not in body:
        return body
    parts: list[str] = []
    position = 0
    for found in _ESCAPE.finditer(body):
        if found.start() < position:
            continue  # the second half of a surrogate pair, taken with the first
        parts.append(body[position : found.start()])
        character, position = _unescape(body, found)
        parts.append(character)
    parts.append(body[position:])
    return "".join(parts)


def _unescape(body: str, found: re.Match[str]) -> tuple[str, int]:
    """Return the character that an escape stands for, and where the escape ends."""
    letter: str | None = found["letter"]
    if letter is not None and letter in _LETTERS:
        return _LETTERS[letter], found.end()
    if letter is not None:
        _fail("invalid escape sequence in string")
    unit: str = found["unit"]
    if _HEX.fullmatch(unit) is None:
        _fail(f"\\u{unit} is not a valid Unicode character")
    code = int(unit, 16)
    if 0xD800 <= code < 0xDC00 and body.startswith("\\u", found.end()):
        low = body[found.end() + 2 : found.end() + 6]
        if _HEX.fullmatch(low) and 0xDC00 <= int(low, 16) < 0xE000:
            return chr(0x10000 + ((code - 0xD800) << 10) + int(low, 16) - 0xDC00), found.end() + 6
    if code == 0 or 0xD800 <= code < 0xE000:
        _fail(f"\\u{unit} is not a valid Unicode character")
    return chr(code), found.end()
