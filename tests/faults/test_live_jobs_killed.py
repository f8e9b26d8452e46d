"""A daemon is killed in the middle of a mirror, a commit of the active layer or a backup, under a guest.

Every time its successor goes on with the job, or refuses where the guest had been led to the target;
and what the guest wrote is there in the end.
"""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.support.crash import NIGHTLY, SEED
from tests.support.killed_call import Killer
from tests.support.killed_live import MODULES, OFTEN, Account, Kind, Story

KILLS = 100 if NIGHTLY else 4

KINDS = {
    "mirrors from raw to vhdx": Kind("drive-mirror", "raw", "vhdx"),
    "mirrors from vhdx to raw": Kind("drive-mirror", "vhdx", "raw"),
    "commits of an active qcow2 layer": Kind("block-commit", "qcow2", "raw"),
    "commits of an active vhdx layer": Kind("block-commit", "vhdx", "vhdx"),
    "backups from raw to vhdx": Kind("drive-backup", "raw", "vhdx"),
    "backups from vhdx to raw": Kind("drive-backup", "vhdx", "raw"),
}


@pytest.mark.parametrize("what", KINDS)
def test_a_job_that_was_killed_goes_on_to_the_right_end(
    what: str, in_memory: Path, tell: Callable[[str], None]
) -> None:
    account, lot = Account(), Random(SEED)
    origin = in_memory / "origin"
    origin.mkdir()
    with Killer(OFTEN, MODULES) as killer:
        first = Story(origin, KINDS[what], killer, SEED, account)
        first.make()
        whole = first.told_anew(in_memory / "whole", SEED)
        calls = asyncio.run(whole.live())
        whole.judge_end()
        number = 0
        while account.kills < KILLS:
            number += 1
            folder = in_memory / str(number)
            first.told_anew(folder, SEED + number).run(lot.randrange(calls // 10, calls))
            shutil.rmtree(folder)
    tell(f"{account.kills} {what} killed with SIGKILL, all resumed to the right end: {account}")
