"""The figures of the io commands: sizes, times, rates and dumps."""

import pytest

from vblk.qemu_io.report import Transfer, clock_time, dump, in_units, short_time


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (512, "512 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.500 KiB"),
        (1000 * 1024, "1000 KiB"),
        (1048064, "1023.500 KiB"),
        (5 << 40, "5 TiB"),
        ((1 << 63) - 1, "8 EiB"),
        (77.570533, "77.570533 bytes"),
        (0.004735, "0.004735 bytes"),
        (0.000512, "0 bytes"),
    ],
)
def test_a_size_has_the_greatest_unit_that_it_fills(value: float, text: str) -> None:
    assert in_units(value) == text


@pytest.mark.parametrize(
    ("seconds", "short", "clock"),
    [
        (0.0, "00.00 sec", "0:00:00.00"),
        (1.239, "01.23 sec", "0:00:01.23"),
        (59.999, "59.99 sec", "0:00:59.99"),
        (60.0, "0:01:00.00", "0:01:00.00"),
        (844.86, "0:14:04.86", "0:14:04.86"),
        (36000.0, "10:00:00.00", "10:00:00.00"),
    ],
)
def test_a_time_has_minutes_where_it_needs_them(seconds: float, short: str, clock: str) -> None:
    assert short_time(seconds) == short
    assert clock_time(seconds) == clock


def test_a_transfer_is_told_in_two_lines_for_a_person() -> None:
    transfer = Transfer("wrote", 4096, 65536, 65536, 0.5)
    assert list(transfer.lines(machine=False)) == [
        "wrote 65536/65536 bytes at offset 4096",
        "64 KiB, 1 ops; 00.50 sec (128 KiB/sec and 2.0000 ops/sec)",
    ]


def test_a_transfer_is_told_in_one_line_for_a_program() -> None:
    transfer = Transfer("read", 0, 1024, 1024, 0.5)
    assert list(transfer.lines(machine=True)) == ["1024,1,0:00:00.50,2048.000,2.000"]


def test_a_transfer_in_no_time_has_a_rate() -> None:
    assert len(list(Transfer("read", 0, 0, 0, 0.0).lines(machine=False))) == 2


def test_a_dump_shows_letters_and_digits_alone() -> None:
    data = b"aZ9!~ _\x80\x7f.-\xc3\xa9aZ9!~ _"
    assert list(dump(data, 3)) == [
        "00000003:  61 5a 39 21 7e 20 5f 80 7f 2e 2d c3 a9 61 5a 39  aZ9..........aZ9",
        "00000013:  21 7e 20 5f  ....",
    ]
    assert list(dump(b"", 0)) == []
