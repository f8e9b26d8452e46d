"""What runs beneath the graph: caches, locks and sequencers.

Owns: small concurrent structures without any I/O of their own, each usable and
tested alone. They know neither nodes nor formats.
"""

from vblk.runtime.fan_out import fan_out
from vblk.runtime.flush_sequencer import FlushSequencer
from vblk.runtime.page_cache import PageCache
from vblk.runtime.range_lock import RangeGuard, RangeLock
from vblk.runtime.watermark import Watermark

__all__ = ["FlushSequencer", "PageCache", "RangeGuard", "RangeLock", "Watermark", "fan_out"]
