"""Which event loop runs a program.

Owns: the choice between asyncio's own loop and uvloop. Loading uvloop costs
more than a short command takes, and files do not become faster by it; servers
with many sockets ask for it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, sockets: bool = False) -> T:
    """Run `main` to its end on a new event loop and return its result.

    Args:
        main: The coroutine; its tasks are cancelled and awaited on SIGINT.
        sockets: Say that the program lives from its sockets: uvloop is used
            where it is installed.
    """
    with asyncio.Runner(loop_factory=_uvloop_factory() if sockets else None) as runner:
        return runner.run(main)


def _uvloop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
