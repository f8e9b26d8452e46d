"""Parents as files that others use too, cases D19 and D20, and what is said of a parent that is not there."""

import asyncio
import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

import vblk
from tests.support.catalogue import run_vblk
from tests.support.subject import Subject
from tests.support.vhdx.records import linkage
from vblk.errors import ImageError, OpenDenied, PermissionConflict
from vblk.graph.site import ChainRules

WRITES = [(512, 1024)]


def child_of_base(folder: Path) -> Subject:
    """Return a child, written beside its parent `base.vhdx`."""
    subject = Subject(folder)
    chain = subject.chain()
    chain.child(WRITES)
    subject.use(chain)
    return subject


def _hold(path: Path, *, read_only: bool) -> subprocess.Popen[bytes]:
    command = ["qemu-io", "-f", "vhdx", *(["-r"] if read_only else []), str(path)]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(b"length\n")
    holder.stdin.flush()
    answer = b""
    while b"MiB" not in answer:
        piece = os.read(holder.stdout.fileno(), 4096)
        assert piece, answer
        answer += piece
    return holder


def _let_go(holder: subprocess.Popen[bytes]) -> None:
    holder.communicate(b"quit\n", timeout=60)


@pytest.mark.parametrize("case", ["D19-writer-holds-parent", "D20-writer-holds-parent-during-the-check"])
def test_a_parent_that_another_process_writes_to_is_refused(case: str, tmp_path: Path) -> None:
    subject = child_of_base(tmp_path)
    holder = _hold(tmp_path / "base.vhdx", read_only=False)
    try:
        with pytest.raises(PermissionConflict) as caught:
            open_and_close(subject)
        assert "base.vhdx" in str(caught.value), case
    finally:
        _let_go(holder)


def test_a_parent_that_another_process_reads_is_shared(tmp_path: Path) -> None:
    subject = child_of_base(tmp_path)
    holder = _hold(tmp_path / "base.vhdx", read_only=True)
    try:
        open_and_close(subject)
    finally:
        _let_go(holder)


def test_nobody_writes_to_a_parent_while_a_child_is_open(tmp_path: Path) -> None:
    subject = child_of_base(tmp_path)

    async def attempt() -> str:
        async with vblk.open(subject.path, format="vhdx"):
            command = ["qemu-io", "-f", "vhdx", "-c", "write 0 512", str(tmp_path / "base.vhdx")]
            ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
            return ran.stdout + ran.stderr

    assert "lock" in asyncio.run(attempt())


def open_and_close(subject: Subject) -> None:
    async def attempt() -> None:
        async with vblk.open(subject.path, format="vhdx", rules=subject.rules) as disk:
            await disk.read(0, 512)

    asyncio.run(attempt())


def test_a_missing_parent_is_reported_with_all_the_candidates(tmp_path: Path) -> None:
    subject = child_of_base(tmp_path)
    (tmp_path / "base.vhdx").unlink()
    subject.rules = ChainRules(parent_dirs=(str(tmp_path / "store"),))
    with pytest.raises(ImageError) as caught:
        open_and_close(subject)
    assert str(tmp_path / "base.vhdx") in str(caught.value)
    assert str(tmp_path / "store" / "base.vhdx") in str(caught.value)


def test_a_mismatch_names_both_identities(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    chain = subject.chain()
    wanted = uuid4()
    chain.child(WRITES, pairs=[("parent_linkage", linkage(wanted)), ("relative_path", "base.vhdx")])
    subject.use(chain)
    with pytest.raises(ImageError) as caught:
        open_and_close(subject)
    assert str(wanted) in str(caught.value)
    assert str(chain.levels[0].vhdx.data_write) in str(caught.value)


def test_info_still_tells_of_an_image_whose_parent_is_missing(tmp_path: Path) -> None:
    subject = child_of_base(tmp_path)
    (tmp_path / "base.vhdx").unlink()
    ran = run_vblk("info", "-f", "vhdx", subject.path)
    assert ran.returncode == 0, ran.stderr
    assert "virtual size: 16 MiB" in ran.stdout


def test_a_fifo_is_never_opened(tmp_path: Path) -> None:
    subject = child_of_base(tmp_path)
    (tmp_path / "base.vhdx").unlink()
    os.mkfifo(tmp_path / "base.vhdx")
    with pytest.raises(OpenDenied):
        open_and_close(subject)
    with pytest.raises(OSError, match="No such device"):
        os.open(tmp_path / "base.vhdx", os.O_WRONLY | os.O_NONBLOCK)
