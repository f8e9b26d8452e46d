"""Replaying the log of a VHDX file in place.

Owns: carrying out what the pure replay (`vblk.formats.vhdx.replay`) worked out
and the loader judged. It decides nothing.

Ordering rule, each step durable before the next:
1. a new file write GUID in both headers, the log GUID kept,
2. zeros, then pages, in their places; the file grown to the length that the log
   asks for, never cut,
3. both headers without a log GUID.
A crash anywhere leads to the same replay again. The data write GUID stays: a
guest saw this content before.

Source: [MS-VHDX] "Log Replay".
"""

from vblk.codec.guid import ZERO_GUID, new_guid
from vblk.drivers.vhdx_session import PAGES_AT_ONCE, page_runs, publish_header
from vblk.formats.vhdx import VhdxImage
from vblk.graph.node import Node
from vblk.runtime.fan_out import fan_out


async def replay_in_place(file: Node, image: VhdxImage) -> None:
    """Bring `file` to the state in which `image`, loaded from it, shows it.

    The image has a log that can be replayed, and everything in it was found
    sound through the log's overlay. It must be loaded again afterwards.

    Raises:
        StorageError: Writing failed; the log is still there.
        NoSpace: Likewise.
    """
    assert image.dirty_log is not None
    assert image.dirty_log.replayable
    overlay = image.overlay
    header = await publish_header(file, image.header._replace(file_write_guid=new_guid()))
    if file.size < overlay.required_length:
        await file.resize(overlay.required_length)
    for start, end in overlay.zeroed.ranges():
        await file.write_zeroes(start, end - start)
    runs = page_runs(dict(overlay.pages))
    await fan_out((file.write(at, data) for at, data in runs), PAGES_AT_ONCE)
    await file.flush()
    await publish_header(file, header._replace(log_guid=ZERO_GUID))
