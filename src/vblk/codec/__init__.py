"""Pure codecs: checksums, identifiers and byte ranges, shared by all formats.

Import its modules: `crc32c`, `guid`, `ranges`.
"""

__all__: list[str] = []
