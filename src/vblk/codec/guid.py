"""GUIDs in Microsoft's mixed-endian form.

Owns: the 16 bytes, and their text. It must not know what they identify.
"""

import os

_DIGITS = (8, 4, 4, 4, 12)
"""Hexadecimal digits of each group of the text."""


class Guid(bytes):
    """Sixteen bytes as they stand in a file; `str()` gives lower-case text with braces.

    0   4   u32, u16, u16 little-endian, then 8 bytes in order:
    {00112233-4455-6677-8899-aabbccddeeff} is
    33 22 11 00  55 44  77 66  88 99 aa bb cc dd ee ff
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> "Guid":
        """Wrap exactly 16 bytes."""
        if len(raw) != 16:
            raise ValueError(f"a GUID has 16 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def parse(cls, text: str) -> "Guid":
        """Read text of either case, with or without braces.

        Raises:
            ValueError: The text is not a GUID.
        """
        bare = text.strip()
        if bare.startswith("{") and bare.endswith("}"):
            bare = bare[1:-1]
        groups = bare.split("-")
        if tuple(map(len, groups)) != _DIGITS:
            raise ValueError(f"{text!r} is not a GUID")
        first, second, third, fourth, fifth = map(bytes.fromhex, groups)
        return cls(first[::-1] + second[::-1] + third[::-1] + fourth + fifth)

    def __str__(self) -> str:
        head = f"{self[3::-1].hex()}-{self[5:3:-1].hex()}-{self[7:5:-1].hex()}"
        return f"{{{head}-{self[8:10].hex()}-{self[10:].hex()}}}"

    def __repr__(self) -> str:
        return f"Guid.parse({str(self)!r})"


ZERO_GUID = Guid(bytes(16))
"""The GUID of all zeros: "none" wherever a GUID is optional."""


def new_guid() -> Guid:
    """Return a random GUID of version 4."""
    raw = bytearray(os.urandom(16))
    raw[7] = raw[7] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return Guid(bytes(raw))
