"""The command line: one module a verb, QEMU's words where QEMU has the verb.

Owns: everything between a shell and the library. The library never prints.
"""

__all__: list[str] = []
