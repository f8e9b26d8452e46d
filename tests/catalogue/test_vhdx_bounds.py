"""Memory that hostile and huge images may cost, case B23 and H17 among them, measured on whole commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.subject import Subject, filled
from tests.support.vhdx.chain import Chain
from tests.support.vhdx.image import Vhdx
from tests.support.vhdx.journal import Entry, Page
from tests.support.vhdx.records import MIB, TIB

MEMORY_MAX = 200 * MIB


MEASURED = """
import re, sys
from vblk.cli.main import run_program
status = run_program("vblk", sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(status, peak[1], file=sys.stderr)
"""


def peak_memory(*arguments: str | Path) -> int:
    """Run a command, which must succeed, and return the most bytes that it had in memory.

    The process is asked itself: what the kernel tells its parent counts from
    before it became another program than its parent.
    """
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    ran = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, timeout=100)
    status, peak = map(int, ran.stderr.splitlines()[-1].split())
    assert status == 0
    return peak * 1024


@pytest.mark.parametrize("verb", ["info", "map", "check"])
def test_64_tib_in_blocks_of_1_mib_fit_into_little_memory(tmp_path: Path, verb: str) -> None:
    blocks = {number: filled(1, number) for number in (0, 4096, 2**25, 2**26 - 1)}
    path = Vhdx(size=64 * TIB, blocks=blocks).build(tmp_path / "huge.vhdx")
    assert peak_memory(verb, "-f", "vhdx", path) < MEMORY_MAX


def test_a_differencing_64_tib_fits_into_little_memory(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, MIB)], size=64 * TIB, block_size=32 * MIB)
    chain.child([(512, 512), (64 * TIB - 512, 512)], size=64 * TIB, block_size=MIB)
    for verb in ("info", "map", "check"):
        assert peak_memory(verb, "-f", "vhdx", chain.top.path) < MEMORY_MAX


def test_a_full_log_is_replayed_in_little_memory(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    parts = subject.rebuild(log_length=16 * MIB)
    guid = subject.vhdx.disk_id
    parts.dirty(guid)
    room = parts.append(16 * MIB)
    for table in parts.tables:
        table.regions.append(type(table.regions[0])(guid, room, 16 * MIB, 0))
    position = 0
    for sequence in range(1, 62):
        pages = [
            Page(room + (sequence * 63 + count) * 4096 % (16 * MIB), b"\xdb" * 4096) for count in range(62)
        ]
        entry = Entry(sequence, guid, list(pages), tail=0, flushed=parts.length, last=parts.length)
        position = parts.put_log(position, entry)
    path = subject.write()
    assert peak_memory("check", "-f", "vhdx", path) < MEMORY_MAX
