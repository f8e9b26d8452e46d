"""A short life of the storage daemon; `make soak` gives it a long one."""

import asyncio
from pathlib import Path

from tests.support.soak import Soak


def test_clients_snapshots_and_kills_leave_every_byte_right(tmp_path: Path) -> None:
    account = asyncio.run(Soak(tmp_path, seed=3).run(lambda rounds: rounds < 3))
    assert account.kills
    assert account.requests
    assert account.bytes_checked
