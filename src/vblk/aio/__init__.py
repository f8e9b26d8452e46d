"""Asynchronous I/O: how blocking work meets the event loop.

Owns: the notifier by which a completion source wakes the loop, the engines that
carry out system calls, the inline fast path, the clock and the loop's choice.
It knows descriptors and buffers, never nodes or formats.
"""

from vblk.aio.clock import Clock, LoopClock
from vblk.aio.engine import Engine, storage_error
from vblk.aio.inline import InlineReader
from vblk.aio.loops import run
from vblk.aio.notifier import EventNotifier, create_notifier
from vblk.aio.threads import ThreadEngine

__all__ = [
    "Clock",
    "Engine",
    "EventNotifier",
    "InlineReader",
    "LoopClock",
    "ThreadEngine",
    "create_notifier",
    "run",
    "storage_error",
]
