"""Image locks within one system: which bytes, which conflicts, which holder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vblk.errors import StorageError
from vblk.graph.edge import READING, SHARED_BY_READER, SHARED_BY_WRITER, WRITING, Permission
from vblk.protocols import image_lock
from vblk.protocols.image_lock import Holder, ImageLock, ImageLocked

NONE = Permission.NONE
ALL = Permission.ALL


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def lock_of(fd: int, *, required: bool = True) -> ImageLock:
    return ImageLock(fd, "disk", required=required)


@pytest.mark.parametrize(
    ("permissions", "shared", "expected"),
    [
        (NONE, ALL, set[int]()),
        (READING, ALL, {100}),
        (READING, SHARED_BY_READER, {100, 201, 203}),
        (WRITING, SHARED_BY_WRITER, {100, 101, 103, 201, 203}),
        (ALL, NONE, {100, 101, 102, 103, 200, 201, 202, 203}),
    ],
)
def test_each_permission_has_its_byte(
    fd: int, permissions: Permission, shared: Permission, expected: set[int]
) -> None:
    lock = lock_of(fd)
    lock.change(permissions, shared)
    assert lock.held_bytes == expected
    lock.close()
    assert lock.held_bytes == frozenset()


@pytest.mark.parametrize("first", range(16))
def test_two_users_conflict_exactly_when_one_uses_what_the_other_keeps(
    fd: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nobody(*_: object) -> tuple[Holder, ...]:
        return ()

    monkeypatch.setattr(image_lock, "find_holders", find_nobody)
    for mine in range(16):
        for others in (0, 5, 15):
            held, asked = lock_of(fd), lock_of(fd)
            held.change(Permission(first), Permission(others))
            for shared in (0, 10, 15):
                conflict = bool(mine & ~others) or bool(first & ~shared)
                try:
                    asked.change(Permission(mine), Permission(shared))
                except ImageLocked:
                    assert conflict
                    assert asked.held_bytes == frozenset()
                else:
                    assert not conflict
                    asked.change(NONE, ALL)
            held.close()
            asked.close()


def test_a_refused_change_keeps_what_was_held(fd: int) -> None:
    reader, other = lock_of(fd), lock_of(fd)
    reader.change(READING, SHARED_BY_READER)
    other.change(READING, SHARED_BY_READER)
    with pytest.raises(ImageLocked):
        reader.change(WRITING, SHARED_BY_WRITER)
    assert reader.held_bytes == {100, 201, 203}
    third = lock_of(fd)
    third.change(READING, SHARED_BY_READER)
    for lock in (reader, other, third):
        lock.close()


def test_locks_outlive_other_descriptors_of_the_file(fd: int, tmp_path: Path) -> None:
    lock, other = lock_of(fd), lock_of(fd)
    lock.change(WRITING, SHARED_BY_WRITER)
    os.close(os.open(tmp_path / "disk", os.O_RDWR))  # would drop the locks of older kinds
    with pytest.raises(ImageLocked):
        other.change(READING, SHARED_BY_READER)
    lock.close()
    other.change(READING, SHARED_BY_READER)
    other.close()


def test_the_error_is_qemus_and_names_this_process(fd: int) -> None:
    lock, other = lock_of(fd), lock_of(fd)
    lock.change(WRITING, SHARED_BY_WRITER)
    with pytest.raises(ImageLocked) as caught:
        other.change(READING, SHARED_BY_READER)
    error = caught.value
    assert error.message == 'Failed to get shared "write" lock\nIs another process using the image [disk]?'
    assert [holder.pid for holder in error.holders] == [os.getpid()]
    assert str(error).endswith("disk: this process has it open for writing")
    lock.close()
    other.close()


def test_a_holder_of_an_exclusive_lock_of_another_kind_is_a_conflict(fd: int, tmp_path: Path) -> None:
    foreign = os.open(tmp_path / "disk", os.O_RDWR)
    fcntl.fcntl(foreign, fcntl.F_OFD_SETLK, image_lock._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 100, 1, 0))
    lock = lock_of(fd)
    with pytest.raises(ImageLocked, match="Failed to lock byte 100"):
        lock.change(READING, SHARED_BY_READER)
    lock.close()
    os.close(foreign)


def test_a_file_without_locks_is_an_error_only_where_they_are_required(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    optional = lock_of(fd, required=False)
    optional.change(WRITING, SHARED_BY_WRITER)
    optional.close()
    required = lock_of(fd)
    with pytest.raises(StorageError, match="Failed to lock the image"):
        required.change(READING, SHARED_BY_READER)
    required.close()


def test_the_search_for_a_holder_is_bounded(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_lock, "_DESCRIPTORS_MAX", 0)
    lock, other = lock_of(fd), lock_of(fd)
    lock.change(WRITING, SHARED_BY_WRITER)
    with pytest.raises(ImageLocked) as caught:
        other.change(READING, SHARED_BY_READER)
    assert caught.value.holders == ()
    assert str(caught.value) == caught.value.message
    lock.close()
    other.close()


def test_holders_are_read_from_any_text_without_failing(tmp_path: Path) -> None:
    path = tmp_path / "fdinfo"
    identity = "fe:00:77"
    for text, ranges in (
        ("", []),
        ("lock:\n", []),
        ("lock:\t1: OFDLCK ADVISORY READ -1 fe:00:77 100 101\n", [(100, 101)]),
        ("lock:\t1: OFDLCK ADVISORY READ -1 fe:00:78 100 101\n", []),
        ("lock:\t1: POSIX ADVISORY WRITE 5 fe:00:77 0 EOF\n", [(0, 1 << 63)]),
    ):
        path.write_text(text)
        assert image_lock._lock_ranges(str(path), identity) == ranges
    assert image_lock._lock_ranges(str(tmp_path / "absent"), identity) == []


def test_a_holder_reads_as_a_sentence() -> None:
    assert str(Holder(12, "qemu-io", True)) == "process 12 (qemu-io) has it open for writing"
    assert str(Holder(12, "qemu-img", False)) == "process 12 (qemu-img) has it open for reading"
