"""A process that commits or streams a chain under a guest is killed at any instant, and begins again.

Every time the chain opens, what the guest had made durable is there, and nothing else but
what it had written; the check of every image is clean; and the job can be done again.
"""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.support.chain_lab import make_chain, names_of, shown
from tests.support.command_line import call
from tests.support.crash import NIGHTLY, SEED
from tests.support.killed_job import JobKiller, writes
from vblk.errors import CorruptImage, Reason

KILLS = 50 if NIGHTLY else 5
LEAKS = 3
SECTOR = 512


def is_right(found: bytes, content: bytearray, next_write: tuple[int, bytes] | None) -> bool:
    """Tell whether a disk is what it must be, but for a write that was under way."""
    expected = bytearray(content)
    if next_write is not None:
        start, data = next_write
        for at in range(start, start + len(data), SECTOR):
            if found[at : at + SECTOR] == data[at - start : at - start + SECTOR]:
                expected[at : at + SECTOR] = found[at : at + SECTOR]
    return found == bytes(expected)


def judge(folder: Path, names: list[str], content: bytes, seed: int, said: str) -> tuple[bytes, str]:
    """Judge what a killed run left; return the disk as it is now, and the name of its image."""
    made = list(writes(seed, len(content)))
    disk = bytearray(content)
    for offset, data in made[: len(said)]:
        disk[offset : offset + len(data)] = data
    coming = made[len(said)] if len(said) < len(made) else None
    image = names[0] if said.endswith("b") else names[-1]
    try:
        found = asyncio.run(shown(folder / image, Path(image).suffix[1:]))
    except CorruptImage as error:
        if error.reason is not Reason.PARENT_MISMATCH:
            raise
        # the guest had gone on to the base, and written there
        found = asyncio.run(shown(folder / names[0], "vhdx"))
        image = names[0]
    assert is_right(found, disk, coming)
    for name in names if image == names[-1] else names[:1]:
        if not name.endswith(".raw"):
            assert call("check", "-q", folder / name).status in (0, LEAKS if "qcow2" in name else 0)
    return found, image


@pytest.mark.parametrize("formats", [["raw", "qcow2", "qcow2"], ["vhdx"] * 3], ids=["qcow2", "vhdx"])
@pytest.mark.parametrize("kind", ["commit", "active", "stream"])
def test_a_killed_job_leaves_the_guest_all_that_was_durable(
    tmp_path: Path, kind: str, formats: list[str], tell: Callable[[str], None]
) -> None:
    names = names_of(formats)
    origin = tmp_path / "origin"
    origin.mkdir()
    content = make_chain(origin, formats)
    lot = Random(SEED)
    kills = 0
    with JobKiller() as killer:
        folder = tmp_path / "whole"
        shutil.copytree(origin, folder)
        whole = killer.run(kind, folder / names[-1], SEED)
        assert whole.status == 0
        while kills < KILLS:
            folder, seed = tmp_path / str(kills), SEED + kills
            shutil.copytree(origin, folder)
            after = lot.randrange(whole.calls // 50, whole.calls)
            killed = killer.run(kind, folder / names[-1], seed, after)
            kills += killed.status != 0  # else it needed fewer calls this time
            found, image = judge(folder, names, content, seed, killed.letters)
            if image == names[-1]:
                again = killer.run(kind, folder / image, seed)
                assert again.status == 0, "it can be done again"
                judge(folder, names, found, seed, again.letters)
            shutil.rmtree(folder)
    tell(f"{kills} runs of {kind} ({formats[-1]}) killed with SIGKILL, all done again to the right end")
