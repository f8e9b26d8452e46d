"""Commands about the run itself: breakpoints, signals, waiting, help and the end.

Owns: their texts. They move no bytes and open no image.
"""

import asyncio
import contextlib
import errno
import os
import signal

from vblk.errors import OptionError
from vblk.filters.events import EventListener
from vblk.qemu_io.language import Call, Complaint, read_integer, read_number
from vblk.qemu_io.session import Session


async def help_command(session: Session, call: Call) -> None:
    """Say what commands there are, or how to call one."""
    if not call.operands:
        for name in sorted(name for name, command in session.commands.items() if name == command.name):
            session.say(session.commands[name].usage())
        session.say("", "Use 'help commandname' for extended help.")
        return
    command = session.commands.get(call.operands[0])
    if command is None:
        raise Complaint(f"command {call.operands[0]} not found")
    session.say(*command.help())


async def quit_command(session: Session, call: Call) -> None:
    """End the session."""
    session.ended = True


def _reset(number: int) -> None:
    """Give a signal back its first meaning, unless it has been ignored from the start."""
    if signal.getsignal(number) is signal.SIG_IGN:
        return
    with contextlib.suppress(OSError, ValueError):  # SIGKILL and SIGSTOP have no other
        signal.signal(number, signal.SIG_DFL)


async def sigraise(session: Session, call: Call) -> None:
    """Send a signal to this process."""
    text = call.operands[0]
    number = read_number(text)
    if number >= signal.NSIG:
        raise Complaint(f"signal argument '{text}' is too large to be a valid signal")
    session.console.out.flush()
    if number:
        _reset(number)
        signal.raise_signal(number)


async def abort(session: Session, call: Call) -> None:
    """Crash, with what was printed last unsaid."""
    _reset(signal.SIGABRT)
    os.abort()


async def sleep(session: Session, call: Call) -> None:
    """Wait for some milliseconds, while background requests run on."""
    text = call.operands[0]
    milliseconds = read_integer(text)
    if milliseconds is None or milliseconds < 0:
        raise Complaint(f"{text} is not a valid number")
    await asyncio.sleep(milliseconds / 1000)


def _listener(session: Session, what: str) -> EventListener:
    listener = session.listener()
    if listener is None:
        raise Complaint(f"{what}: {os.strerror(errno.ENOTSUP)}")
    return listener


async def set_break(session: Session, call: Call) -> None:
    """Stop the next request that reaches an event."""
    from vblk.filters.fault_rules import event_named

    listener = _listener(session, "Could not set breakpoint")
    name, tag = call.operands
    try:
        event = event_named(name)
    except OptionError:
        raise Complaint(f"Could not set breakpoint: {os.strerror(errno.ENOENT)}") from None
    listener.add_breakpoint(event, tag)


async def remove_break(session: Session, call: Call) -> None:
    """Forget a breakpoint; its request goes on."""
    tag = call.operands[0]
    listener = _listener(session, f"Could not remove breakpoint {tag}")
    removed = listener.remove_breakpoint(tag)
    await asyncio.sleep(0)
    if not removed:
        raise Complaint(f"Could not remove breakpoint {tag}: {os.strerror(errno.ENOENT)}")


async def resume(session: Session, call: Call) -> None:
    """Let a stopped request go on."""
    listener = _listener(session, "Could not resume request")
    if not listener.resume(call.operands[0]):
        raise Complaint(f"Could not resume request: {os.strerror(errno.ENOENT)}")
    await asyncio.sleep(0)


async def wait_break(session: Session, call: Call) -> None:
    """Wait until a request is stopped."""
    await _listener(session, "Could not wait for a request").wait_stopped(call.operands[0])
