"""Classes of nodes that do more than others of their kind.

Owns: subclasses, made when they are first needed, so that a node changes into one
and back while it lives, and a node that does no more pays nothing. What is done
more is in mixins.
"""

from functools import cache
from typing import Any, ClassVar

from vblk.graph.node import Node


class Extra(Node):
    """What a node does more than one of its plain class.

    A mixin calls what it stands on by the class attribute that `below` names: the
    plain class, or that with other mixins.
    """

    below_name: ClassVar[str]


def add_extra(node: Node, extra: type[Any]) -> None:
    """Let a node do what a mixin, an `Extra`, does; nothing may be in flight on it."""
    plain, extras = _parts(type(node))
    if extra not in extras:
        node.__class__ = _kind(plain, (*extras, extra))


def remove_extra(node: Node, extra: type[Any]) -> None:
    """Let a node do no more than without a mixin; nothing may be in flight on it."""
    plain, extras = _parts(type(node))
    node.__class__ = _kind(plain, tuple(each for each in extras if each is not extra))


def plain_kind(node: Node) -> type[Node]:
    """Return the class of a node without mixins."""
    return _parts(type(node))[0]


def _parts(kind: type[Node]) -> tuple[type[Node], tuple[type[Any], ...]]:
    return _known.get(kind, (kind, ()))


_known: dict[type[Node], tuple[type[Node], tuple[type[Any], ...]]] = {}


@cache
def _kind(plain: type[Node], extras: tuple[type[Any], ...]) -> type[Node]:
    if not extras:
        return plain
    below, extra = _kind(plain, extras[:-1]), extras[-1]
    kind = type(plain.__name__, (extra, below), {extra.below_name: below, "__doc__": plain.__doc__})
    _known[kind] = (plain, extras)
    return kind
