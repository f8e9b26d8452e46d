"""Image formats as pure maps: parsers, lookups and plans over bytes in memory."""
