"""The monitor: the commands by which programs and people change a running daemon.

Owns: the schema, the commands and their table, the daemon that they work on, and
the connections of their clients. It offers its modules.
"""
