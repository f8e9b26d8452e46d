"""Asynchronous I/O: how blocking work meets the event loop.

Owns: the notifier by which a completion source wakes the loop, the engines that
carry out system calls, the inline fast path, the clock and the loop's choice.
It knows descriptors and buffers, never nodes or formats.
"""
