"""Exports: how others come at a disk, and at what was counted of it.

Owns: one module, or package, a way of exporting.
"""

__all__: list[str] = []
