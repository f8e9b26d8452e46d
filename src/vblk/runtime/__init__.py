"""What runs beneath the graph: caches, locks and sequencers.

Owns: small concurrent structures without any I/O of their own, each usable and
tested alone. They know neither nodes nor formats.
"""
