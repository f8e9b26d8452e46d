"""Copying between descriptors without the zeros."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from vblk.errors import NoSpace, StorageError
from vblk.graph.sparse_copy import BUFFER_SIZE, copy_without_zeros, data_runs, units_with_data
from vblk.units import KIB, MIB

UNIT = 4096
DATA = b"d" * UNIT
ZERO = bytes(UNIT)


def test_runs_are_the_units_that_are_not_all_zeros() -> None:
    buffer = bytearray(ZERO + DATA + DATA + ZERO + DATA + bytes(99))
    assert data_runs(buffer, len(buffer), UNIT) == [(UNIT, 3 * UNIT), (4 * UNIT, 5 * UNIT)]
    assert data_runs(buffer + b"x", len(buffer) + 1, UNIT)[-1] == (4 * UNIT, 5 * UNIT + 100)
    assert data_runs(bytes(5000), 5000, 512) == []
    assert data_runs(bytes(512) + b"a" + bytes(511), 1024, 1024) == [(0, 1024)]


def test_only_the_counted_bytes_of_a_reused_buffer_are_looked_at() -> None:
    buffer = bytearray(BUFFER_SIZE)
    buffer[UNIT:] = b"x" * (BUFFER_SIZE - UNIT)
    assert data_runs(buffer, UNIT, UNIT) == []
    assert data_runs(buffer, UNIT + 1, UNIT) == [(UNIT, UNIT + 1)]


def test_a_buffer_of_zeros_has_no_runs() -> None:
    assert data_runs(bytearray(BUFFER_SIZE), BUFFER_SIZE, UNIT) == []


@pytest.mark.parametrize("shift", [0, 512, 8 * UNIT])
def test_the_copy_reads_the_same_and_has_holes_for_zeros(tmp_path: Path, shift: int) -> None:
    content = (DATA + ZERO * 70) * 5 + ZERO * 100 + DATA + b"tail"
    (tmp_path / "source").write_bytes(bytes(1000) + content)
    (tmp_path / "target").touch()
    os.truncate(tmp_path / "target", shift + len(content))
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR)
    assert copy_without_zeros(source, target, 1000, shift, len(content), unit=UNIT) == len(content)
    os.close(source)
    os.close(target)
    assert (tmp_path / "target").read_bytes() == bytes(shift) + content
    if shift % UNIT == 0:
        assert (tmp_path / "target").stat().st_blocks * 512 <= 8 * UNIT


def test_the_end_of_the_source_ends_the_copy(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    assert copy_without_zeros(source, target, 100, 0, BUFFER_SIZE * 3, unit=UNIT) == UNIT - 100
    assert copy_without_zeros(source, target, UNIT, 0, 10, unit=UNIT) == 0
    os.close(source)
    os.close(target)


def test_a_full_or_unwritable_target_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(NoSpace) as caught:
        copy_without_zeros(source, full, 0, 8 * UNIT, UNIT, unit=UNIT)
    assert caught.value.offset == 8 * UNIT
    with pytest.raises(StorageError):
        copy_without_zeros(source, source, 0, 0, UNIT, unit=UNIT)
    os.close(source)
    os.close(full)


def test_space_that_was_reserved_and_not_written_is_given_back(tmp_path: Path) -> None:
    content = b"d" * (2 * BUFFER_SIZE) + bytes(14 * BUFFER_SIZE)
    (tmp_path / "source").write_bytes(content)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, len(content))
    assert copy_without_zeros(source, target, 0, 0, len(content), unit=UNIT) == len(content)
    assert os.pread(target, len(content), 0) == content
    assert os.fstat(target).st_blocks * 512 <= 3 * BUFFER_SIZE
    os.close(source)
    os.close(target)


def test_a_source_that_ends_early_leaves_nothing_reserved(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"d" * BUFFER_SIZE)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, 64 * BUFFER_SIZE)
    assert copy_without_zeros(source, target, 0, 0, 64 * BUFFER_SIZE, unit=UNIT) == BUFFER_SIZE
    assert os.fstat(target).st_blocks * 512 <= 2 * BUFFER_SIZE
    os.close(source)
    os.close(target)


def test_units_with_data_are_found_wherever_the_range_begins_in_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = bytearray(2 * MIB + 700)
    for at in (300 * KIB, MIB - 1, MIB, 2 * MIB + 699):
        content[at] = 1
    path.write_bytes(content)
    with path.open("rb") as file:
        for unit in (64 * KIB, 256 * KIB, MIB):
            for start, phase in ((0, 0), (0, 4096), (4096, 512), (300 * KIB, 0), (300 * KIB + 1, unit - 1)):
                length = len(content) - start
                found = units_with_data(file.fileno(), start, length, unit=unit, phase=phase)
                expected = bytearray(length)
                for begin in range(-phase, length, unit):
                    low, high = max(0, begin), min(length, begin + unit)
                    if any(content[start + low : start + high]):
                        expected[low:high] = b"\1" * (high - low)
                told = bytearray(length)
                for begin, end in found:
                    told[begin:end] = b"\1" * (end - begin)
                assert told == expected
                assert all(a[1] < b[0] for a, b in pairwise(found))


def test_what_lies_beyond_the_end_of_the_source_counts_as_data(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(4096))
    with (tmp_path / "a").open("rb") as file:
        assert units_with_data(file.fileno(), 0, 8192, unit=4096, phase=0) == [(4096, 8192)]
