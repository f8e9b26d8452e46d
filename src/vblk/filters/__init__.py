"""Filters: nodes that decorate one other node.

Owns: one module a filter. A filter sees every request and says for each what it
does with it; nothing passes by accident.
"""

__all__: list[str] = []
