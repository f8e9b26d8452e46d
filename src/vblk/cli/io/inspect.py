"""Commands about the image as a whole: its length, its facts, what is allocated.

Owns: what they print. It moves no payload.
"""

from vblk.cli.failure import Failure
from vblk.cli.io.language import Call, read_number
from vblk.cli.io.report import in_units
from vblk.cli.io.session import Session
from vblk.errors import BlockError
from vblk.graph.node import Preallocation, Span
from vblk.units import GIB


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
        session.say("Format specific information:")
        session.say(*(f"    {name.replace('-', ' ')}: {_plain(value)}" for name, value in facts.items()))


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allocated(span: Span) -> bool:
    return span.present and span.depth == 0


async def alloc(session: Session, call: Call) -> None:
    """Say how much of a range the image itself holds."""
    start = read_number(call.operands[0])
    wanted = read_number(call.operands[1]) if len(call.operands) > 1 else 512
    count = max(0, min(wanted, session.handle.size - start))
    total = 0
    try:
        if count:
            spans = await session.handle.allocation(start, count)
            total = sum(span.length for span in spans if _allocated(span))
    except BlockError as error:
        session.fail(session.failed("is_allocated", error))
        return
    session.say(f"{total}/{count} bytes allocated at offset {in_units(start)}")


async def map_command(session: Session, call: Call) -> None:
    """Say which parts the image itself holds."""
    size = session.handle.size
    runs: list[tuple[int, int, bool]] = []
    try:
        # In steps, so that a disk of many extents needs no list of them all.
        for start in range(0, size, 64 * GIB):
            for span in await session.handle.allocation(start, min(64 * GIB, size - start)):
                held = _allocated(span)
                if runs and runs[-1][2] == held:
                    runs[-1] = (runs[-1][0], span.guest_offset + span.length, held)
                else:
                    runs.append((span.guest_offset, span.guest_offset + span.length, held))
    except BlockError as error:
        import os

        raise Failure(f"Failed to get allocation status: {os.strerror(error.errno)}") from error
    for first, end, held in runs:
        amount = end - first
        session.say(
            f"{in_units(amount)} ({amount:#x}) bytes {'   ' if held else 'not'} allocated "
            f"at offset {in_units(first)} ({first:#x})"
        )


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
