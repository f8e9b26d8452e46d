"""Wire protocols: messages and sessions as bytes in memory.

Owns: one package a protocol, each a set of state machines that are fed bytes
and say which bytes to send. It does no I/O and knows no node; the shells that
own sockets stand in `vblk.protocols`.
"""

__all__: list[str] = []
