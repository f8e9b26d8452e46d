"""Protocols: the leaves of the graph, which store bytes themselves.

Owns: one module a kind of storage. A leaf knows its storage and the engine; it
must not know formats, nor who stands above it.
"""

__all__: list[str] = []
