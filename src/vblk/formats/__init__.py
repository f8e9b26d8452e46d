"""Image formats as pure maps: parsers, lookups and checks over bytes in memory.

Import its modules: `probe` guesses a format, each format is a package of its own.
"""

__all__: list[str] = []
