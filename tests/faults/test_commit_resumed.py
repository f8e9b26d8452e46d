"""A commit of layers under a guest that is killed at any instant is resumed, and goes on where it was.

Every time the chain opens and the disk reads the same, the checks are clean, and the same
job comes to its end: the layers are deleted, and the journal is gone.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.faults.test_chain_jobs_killed import judge
from tests.support.chain_lab import make_chain, names_of
from tests.support.crash import NIGHTLY, SEED
from tests.support.killed_job import JobKiller

KILLS = 50 if NIGHTLY else 5
OFTEN = {
    "vblk.jobs.resumption.PERIOD": 0.0005,
    "vblk.jobs.sweep.WORKERS": 1,
    "vblk.jobs.sweep.PIECE": 16 << 10,
}


@pytest.mark.parametrize("formats", [["raw", *["qcow2"] * 3], ["vhdx"] * 4], ids=["qcow2", "vhdx"])
def test_a_killed_commit_goes_on_to_the_right_end(
    tmp_path: Path, formats: list[str], tell: Callable[[str], None]
) -> None:
    names = names_of(formats)
    origin = tmp_path / "origin"
    origin.mkdir()
    content = make_chain(origin, formats)
    lot = Random(SEED)
    went_on = kills = 0
    with JobKiller(OFTEN) as killer:
        folder = tmp_path / "whole"
        shutil.copytree(origin, folder)
        whole = killer.run("resumed", folder / names[-1], SEED)
        assert whole.status == 0
        assert sorted(os.listdir(folder)) == [names[0], names[-1]]
        while kills < KILLS:
            folder, seed = tmp_path / str(kills), SEED + kills
            shutil.copytree(origin, folder)
            killed = killer.run("resumed", folder / names[-1], seed, lot.randrange(1, whole.calls))
            if killed.status == 0:
                shutil.rmtree(folder)
                continue  # it needed fewer calls this time
            kills += 1
            there = [name for name in names if (folder / name).exists()]
            found, image = judge(folder, there, content, seed, killed.letters)
            assert image == names[-1]
            again = killer.run("resumed", folder / image, seed)
            assert again.status == 0
            assert sorted(os.listdir(folder)) == [names[0], names[-1]]
            judge(folder, [names[0], names[-1]], found, seed, again.letters)
            went_on += 0 < again.moved < whole.moved
            shutil.rmtree(folder)
    assert went_on, "no kill came in the middle"
    tell(
        f"{kills} commits of {formats[-1]} layers killed with SIGKILL, all resumed to the right end;"
        f" {went_on} went on in the middle"
    )
