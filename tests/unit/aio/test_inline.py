"""Inline reads give all bytes or None, inline writes take all or say no; both know where they cannot work."""

import errno
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from vblk.aio import inline
from vblk.aio.inline import InlineReader, InlineWriter


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


class Calls:
    """The system's two ways to write, with a clock beside them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, nowait: int = 0, plain: int = 0) -> None:
        """`nowait` and `plain` are the errors that the calls end with, 0 for none."""
        self.made: list[str] = []
        self.now = 0.0
        self.takes = 0.0
        self.errors = {"nowait": nowait, "plain": plain}
        monkeypatch.setattr(inline, "perf_counter", lambda: self.now)
        monkeypatch.setattr(os, "pwritev", partial(self._call, "nowait"))
        monkeypatch.setattr(os, "pwrite", partial(self._call, "plain"))

    def _call(self, which: str, *_: object) -> int:
        self.made.append(which)
        self.now += self.takes
        if self.errors[which]:
            raise OSError(self.errors[which], os.strerror(self.errors[which]))
        return 4096


def test_what_is_written_inline_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(20_000))
    fd = os.open(path, os.O_RDWR)
    writer = InlineWriter(fd, may_wait=True)
    writer.try_write(0, b"0" * 4096)  # whatever this finds out
    assert writer.try_write(4096, b"1" * 4096)
    assert writer.try_write(8192, memoryview(b"2" * 8192))
    assert path.read_bytes()[4096:] == b"1" * 4096 + b"2" * 8192 + bytes(20_000 - 16384)
    os.close(fd)


def test_a_part_of_a_page_is_written_inline_when_the_rest_is_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(20_000))
    fd = os.open(path, os.O_RDWR)
    writer = InlineWriter(fd, may_wait=True)
    writer.try_write(0, bytes(4096))  # whatever this finds out
    can_look = InlineReader(fd).try_read(0, 1) is not None
    assert writer.try_write(100, b"x" * 300) == can_look
    assert path.read_bytes()[100:400] == (b"x" if can_look else b"\0") * 300
    os.close(fd)


def test_plain_writes_of_whole_pages_stand_in_where_the_others_are_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(monkeypatch, nowait=errno.EOPNOTSUPP)
    writer = InlineWriter(0, may_wait=True)
    assert not writer.try_write(0, bytes(4096))
    assert writer.try_write(0, bytes(4096))
    assert not writer.try_write(512, bytes(4096))
    assert not writer.try_write(4096, bytes(512))
    assert calls.made == ["nowait", "plain"]


def test_nothing_stands_in_where_a_write_may_wait_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, nowait=errno.EOPNOTSUPP)
    writer = InlineWriter(0, may_wait=False)
    assert [writer.try_write(0, bytes(4096)) for _ in range(3)] == [False] * 3
    assert calls.made == ["nowait"]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOSPC, errno.EIO])
def test_a_write_that_would_block_or_fails_is_left_to_a_worker_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = Calls(monkeypatch, nowait=number)
    writer = InlineWriter(0, may_wait=True)
    assert [writer.try_write(0, bytes(4096)) for _ in range(2)] == [False, False]
    assert calls.made == ["nowait", "nowait"]


def test_a_short_write_is_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(monkeypatch)
    assert not InlineWriter(0, may_wait=True).try_write(0, bytes(8192))


def test_after_slow_writes_more_and_more_are_left_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    writer = InlineWriter(0, may_wait=True)
    calls.takes = 0.01
    wrote = "".join("01"[writer.try_write(0, bytes(4096))] for _ in range(16))
    assert wrote == "1010010000100000"
    calls.takes = 0.0
    wrote = "".join("01"[writer.try_write(0, bytes(4096))] for _ in range(8))
    assert wrote == "00011111"
    calls.takes = 0.01
    assert writer.try_write(0, bytes(4096))
    assert not writer.try_write(0, bytes(4096))
    assert writer.try_write(0, bytes(4096)), "one slow write among fast ones costs one hop"


def test_long_writes_are_left_to_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    assert not InlineWriter(0, may_wait=True).try_write(0, bytes(1 << 20))
    assert calls.made == []


def test_a_closed_writer_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    writer = InlineWriter(0, may_wait=True)
    writer.close()
    assert not writer.try_write(0, bytes(4096))
    assert calls.made == []
