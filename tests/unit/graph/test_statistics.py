"""What is counted, under QEMU's names and in Prometheus' text."""

import pytest

from vblk.graph.statistics import BUCKETS, Measured, Operation, Statistics, block_stats, prometheus_text


def used() -> Statistics:
    statistics = Statistics()
    statistics.account(Operation.READ, 4096, 2047)
    statistics.account(Operation.READ, 3 * 512, 5_000, count=3)
    statistics.account(Operation.WRITE, 512, 1 << 60)
    statistics.account(Operation.ZERO, 1024, 10)
    statistics.fail(Operation.WRITE)
    statistics.in_flight = 2
    return statistics


def test_qemus_names_tell_what_was_counted_and_zeroing_is_writing() -> None:
    told = block_stats(used())
    assert (told["rd_operations"], told["rd_bytes"], told["rd_total_time_ns"]) == (4, 5632, 17_047)
    assert (told["wr_operations"], told["wr_bytes"], told["failed_wr_operations"]) == (2, 1536, 1)
    assert told["wr_total_time_ns"] == (1 << 60) + 10
    assert told["flush_operations"] == told["unmap_operations"] == told["failed_rd_operations"] == 0


@pytest.mark.parametrize(("ns", "bucket"), [(0, 0), (2047, 0), (2048, 1), (4096, 2), (1 << 62, BUCKETS - 1)])
def test_a_time_is_in_the_bucket_whose_end_is_the_first_above_it(ns: int, bucket: int) -> None:
    statistics = Statistics()
    statistics.account(Operation.FLUSH, 0, ns)
    assert statistics.counters[Operation.FLUSH].buckets.index(1) == bucket


def test_statistics_of_several_users_add_up() -> None:
    both = used()
    both.add(used())
    assert both.in_flight == 4
    assert both.counters[Operation.READ].operations == 8
    assert sum(both.counters[Operation.READ].buckets) == 8
    assert both.counters[Operation.WRITE].failed == 2


def test_prometheus_text_has_one_head_a_family_and_buckets_that_add_up_to_the_count() -> None:
    things = [Measured("export", {"export": name}, used()) for name in ("a", 'b"\\\n')]
    lines = prometheus_text(things).splitlines()
    heads = [line for line in lines if line.startswith("# TYPE")]
    assert heads == [
        "# TYPE vblk_export_operations_total counter",
        "# TYPE vblk_export_bytes_total counter",
        "# TYPE vblk_export_failed_total counter",
        "# TYPE vblk_export_latency_seconds histogram",
        "# TYPE vblk_export_in_flight gauge",
    ]
    assert 'vblk_export_operations_total{export="a",operation="read"} 4' in lines
    assert 'vblk_export_failed_total{export="b\\"\\\\\\n",operation="write"} 1' in lines
    reads = [line for line in lines if 'latency_seconds_bucket{export="a",operation="read"' in line]
    assert reads[0].endswith('le="2.048e-06"} 1')
    assert [int(line.split()[-1]) for line in reads] == [1, 1, *[4] * (BUCKETS - 2)]
    assert reads[-1].endswith('le="+Inf"} 4')
    assert 'vblk_export_latency_seconds_count{export="a",operation="read"} 4' in lines
    assert 'vblk_export_in_flight{export="a"} 2' in lines


def test_nothing_measured_is_an_empty_text() -> None:
    assert prometheus_text([]) == ""
