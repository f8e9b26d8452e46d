"""Benchmarks: vblk beside other programs, on the same files, taking turns.

Every number is a ratio of two times taken in one run, so that it says the same
on another machine. What each side produced is compared before a time counts.
"""

__all__: list[str] = []
