"""Pure codecs: checksums, identifiers and byte ranges, shared by all formats."""
