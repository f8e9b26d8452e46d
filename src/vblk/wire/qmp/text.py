"""JSON as QEMU writes it: blanks, and the order of members.

Owns: the spelling of values. Must not know what they mean. Every function runs to
completion and is pure.

Source: QEMU's answers, compared letter for letter (tests/interop/test_qmp.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from vblk.options.quoting import quote
from vblk.wire.qmp.member_order import RANK, UNKNOWN

_INDENT: Final = "    "


def encode_json(value: Any, *, pretty: bool = False) -> str:
    """Write a value on one line, or with `pretty` on many.

    Members that QEMU knows come in its order; where two share a place there,
    and for others, the order of the mapping counts.
    """
    return _encode(value, 0 if pretty else None)


def _encode(value: Any, depth: int | None) -> str:
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.17g}"
    below = None if depth is None else depth + 1
    if isinstance(value, Mapping):
        members: list[tuple[str, Any]] = sorted(cast("Mapping[str, Any]", value).items(), key=_place)
        return _enclosed(
            "{", [f"{quote(name)}: {_encode(member, below)}" for name, member in members], "}", depth
        )
    items: Sequence[Any] = value
    return _enclosed("[", [_encode(item, below) for item in items], "]", depth)


def _place(member: tuple[str, Any]) -> int:
    return RANK.get(member[0], UNKNOWN)


def _enclosed(start: str, parts: list[str], end: str, depth: int | None) -> str:
    if depth is None:
        return start + ", ".join(parts) + end
    inner = "\n" + _INDENT * (depth + 1)
    members = inner + f",{inner}".join(parts) if parts else ""
    return start + members + "\n" + _INDENT * depth + end
