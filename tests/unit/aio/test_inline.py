"""Inline reads give all bytes or None, and remember where they cannot work."""

import errno
import os
import threading
from pathlib import Path

import pytest

from vblk.aio.inline import InlineReader


def cached(tmp_path: Path) -> tuple[int, bytes]:
    data = os.urandom(300_000)
    path = tmp_path / "data"
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY), data


def test_what_the_page_cache_has_is_read_at_once(tmp_path: Path) -> None:
    fd, data = cached(tmp_path)
    reader = InlineReader(fd)
    for offset, length in [(0, 4096), (1, 512), (4095, 2), (0, 100_000), (5, 4096), (0, 4096)]:
        got = reader.try_read(offset, length)
        assert got == data[offset : offset + length] or (got is None and not reader.supported)
    os.close(fd)


def test_a_result_does_not_change_with_the_next_read(tmp_path: Path) -> None:
    fd, data = cached(tmp_path)
    reader = InlineReader(fd)
    first = reader.try_read(0, 4096)
    reader.try_read(8192, 4096)
    assert first in (data[:4096], None)
    os.close(fd)


def test_a_range_past_the_end_is_none(tmp_path: Path) -> None:
    fd, data = cached(tmp_path)
    assert InlineReader(fd).try_read(len(data) - 10, 20) is None
    assert InlineReader(fd).try_read(len(data) + 10, 20) is None
    os.close(fd)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_an_unsupported_read_is_tried_once(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[int] = []

    def refuse(*_: object) -> int:
        calls.append(1)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", refuse)
    reader = InlineReader(0)
    assert reader.try_read(0, 512) is None
    assert reader.try_read(0, 512) is None
    assert len(calls) == 1


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EIO])
def test_a_read_that_would_block_or_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls: list[int] = []

    def refuse(*_: object) -> int:
        calls.append(1)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", refuse)
    reader = InlineReader(0)
    assert reader.try_read(0, 512) is None
    assert reader.try_read(0, 512) is None
    assert len(calls) == 2


def test_many_lengths_keep_little_memory(tmp_path: Path) -> None:
    fd, _ = cached(tmp_path)
    reader = InlineReader(fd)
    for length in range(1, 2000):
        reader.try_read(0, length)
    assert len(reader._spare) <= 16
    os.close(fd)


def test_threads_that_read_at_once_get_their_own_bytes(tmp_path: Path) -> None:
    fd, data = cached(tmp_path)
    reader = InlineReader(fd)
    wrong: list[int] = []

    def read(page: int) -> None:
        for _ in range(3000):
            got = reader.try_read(page * 4096, 4096)
            if got is not None and got != data[page * 4096 : (page + 1) * 4096]:
                wrong.append(page)

    readers = [threading.Thread(target=read, args=(page,)) for page in range(4)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    assert wrong == []
    os.close(fd)
