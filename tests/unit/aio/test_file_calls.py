"""System calls without a name in Python do what their manual says."""

import errno
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from vblk.aio import file_calls
from vblk.aio.file_calls import KEEP_SIZE, PUNCH_HOLE, fallocate, open_again

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(b"x" * MIB)
    return path


@pytest.fixture
def fd(path: Path) -> Generator[int, None, None]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def no_proc(name: str, flags: int, mode: int = 0o777) -> int:
        if name.startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", no_proc)


def test_fallocate_allocates_and_punches(fd: int) -> None:
    fallocate(fd, 0, MIB, MIB)
    assert os.fstat(fd).st_size == 2 * MIB
    before = os.fstat(fd).st_blocks
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, MIB)
    assert os.fstat(fd).st_blocks <= before - MIB // 512
    assert os.pread(fd, 4, 0) == bytes(4)


def test_fallocate_says_why_it_failed(fd: int) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        fallocate(fd, 0, 0, 0)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="Bad file descriptor"):
        fallocate(-1, 0, 0, 1)


def test_an_interrupted_fallocate_is_tried_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.EINTR, errno.EINTR, 0]

    def call(*_: int) -> int:
        return answers.pop(0)

    monkeypatch.setattr(file_calls, "_fallocate_call", lambda: call)
    fallocate(fd, 0, 0, 1)
    assert answers == []


def test_a_system_without_fallocate_does_not_support_it(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_calls, "_fallocate_call", lambda: None)
    with pytest.raises(OSError, match="not supported") as caught:
        fallocate(fd, 0, 0, 1)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_file_is_opened_again_under_whatever_name(fd: int, path: Path) -> None:
    path.rename(path.with_name("moved"))
    again = open_again(fd, str(path), os.O_RDONLY)
    assert os.path.samestat(os.fstat(fd), os.fstat(again))
    assert not os.get_inheritable(again)
    os.close(again)


def test_without_proc_the_name_must_still_lead_there(
    fd: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_proc(monkeypatch)
    os.close(open_again(fd, str(path), os.O_RDONLY))
    path.unlink()
    path.write_bytes(b"another")
    with pytest.raises(OSError, match="is another file by now") as caught:
        open_again(fd, str(path), os.O_RDONLY)
    assert caught.value.errno == errno.ESTALE
