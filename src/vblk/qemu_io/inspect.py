"""Commands about the image as a whole: its length, its facts, what is allocated.

Owns: what they print. It moves no payload.
"""

import os
from collections.abc import AsyncGenerator

from vblk.errors import BlockError
from vblk.graph.node import Preallocation
from vblk.qemu_io.language import Call, read_number
from vblk.qemu_io.report import in_units
from vblk.qemu_io.session import Session
from vblk.units import GIB
from vblk.wording import Failure

MAP_STEP = 64 * GIB
"""How much of a disk is asked about at once, so that a disk of many extents needs no list of them all."""


async def length(session: Session, call: Call) -> None:
    """Say the virtual size."""
    session.say(in_units(session.handle.size))


async def info(session: Session, call: Call) -> None:
    """Say the format and what is special to it."""
    node = session.handle.node
    facts = dict(node.info())
    cluster = facts.get("block-size", facts.get("cluster-size", 0))
    session.say(
        f"format name: {node.driver}",
        f"cluster size: {in_units(cluster if isinstance(cluster, int) else 0)}",
        "vm state offset: 0 bytes",
    )
    if facts:
        from vblk.describing import nested_lines

        session.say("Format specific information:")
        session.say(*nested_lines(facts, 1))


async def _runs(session: Session, start: int, end: int) -> AsyncGenerator[tuple[int, int, bool], None]:
    """Yield the runs of a range as first byte, end, and whether the image itself holds them."""
    first, held = start, False
    for position in range(start, end, MAP_STEP):
        for span in await session.handle.allocation(position, min(MAP_STEP, end - position)):
            own = span.present and span.depth == 0
            if own != held:
                if span.guest_offset > first:
                    yield first, span.guest_offset, held
                first, held = span.guest_offset, own
    if end > first:
        yield first, end, held


async def alloc(session: Session, call: Call) -> None:
    """Say how much of a range the image itself holds."""
    start = read_number(call.operands[0])
    wanted = read_number(call.operands[1]) if len(call.operands) > 1 else 512
    count = max(0, min(wanted, session.handle.size - start))
    total = 0
    try:
        async for first, end, held in _runs(session, start, start + count):
            total += held * (end - first)
    except BlockError as error:
        session.fail(session.failed("is_allocated", error))
        return
    session.say(f"{total}/{count} bytes allocated at offset {in_units(start)}")


async def map_command(session: Session, call: Call) -> None:
    """Say which parts the image itself holds."""
    try:
        async for first, end, held in _runs(session, 0, session.handle.size):
            amount = end - first
            session.say(
                f"{in_units(amount)} ({amount:#x}) bytes {'   ' if held else 'not'} allocated "
                f"at offset {in_units(first)} ({first:#x})"
            )
    except BlockError as error:
        raise Failure(f"Failed to get allocation status: {os.strerror(error.errno)}") from error


async def truncate(session: Session, call: Call) -> None:
    """Change the virtual size."""
    mode = call.value("m")
    try:
        preallocation = Preallocation.OFF if mode is None else Preallocation(mode)
    except ValueError:
        raise Failure(f"Invalid preallocation mode '{mode}'") from None
    if not call.operands:
        session.misused(call)
        return
    await session.handle.resize(read_number(call.operands[0]), preallocation=preallocation, exact=False)
