"""From guest ranges to extents, on tables written by hand."""

import random
import struct
import zlib

import pytest

from vblk.errors import CorruptImage
from vblk.extent import Extent, Kind, Missing
from vblk.formats.qcow2.compression import laid_out, pack, unpack
from vblk.formats.qcow2.header import Header
from vblk.formats.qcow2.mapping import ClusterMap

CLUSTER = 4096
L1_AT, L2_AT = 3 * CLUSTER, 4 * CLUSTER
SPAN = CLUSTER * CLUSTER // 8
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
FILE_SIZE = 64 * CLUSTER


class Tables:
    """Pages in memory by file offset, and a map over them."""

    def __init__(self, *entries: int, version: int = 3) -> None:
        self.pages: dict[int, bytes] = {
            L1_AT: struct.pack(">2Q", L2_AT | COPIED, 0).ljust(CLUSTER, b"\0"),
            L2_AT: struct.pack(f">{len(entries)}Q", *entries).ljust(CLUSTER, b"\0"),
        }
        self.map = ClusterMap(Header(version, 12, 2 * SPAN, 2, L1_AT, CLUSTER, 1), "disk")

    def lookup(self, offset: int, length: int) -> list[Extent]:
        answer = self.map.lookup(offset, length, self.pages, FILE_SIZE)
        assert not isinstance(answer, Missing)
        return answer

    def kinds(self, offset: int, length: int) -> list[tuple[str, int, int, int | None]]:
        found = self.lookup(offset, length)
        assert sum(extent.length for extent in found) == length
        return [(each.kind.name, each.guest_offset, each.length, each.file_offset) for each in found]


def test_every_kind_of_entry_is_told_apart() -> None:
    tables = Tables(
        10 * CLUSTER | COPIED, 11 * CLUSTER, 0, ZERO, 12 * CLUSTER | COPIED | ZERO, COMPRESSED | 0x9001
    )
    assert tables.kinds(100, 6 * CLUSTER) == [
        ("DATA", 100, 2 * CLUSTER - 100, 10 * CLUSTER + 100),
        ("ABSENT", 2 * CLUSTER, CLUSTER, None),
        ("ZERO", 3 * CLUSTER, 2 * CLUSTER, None),
        ("ENCODED", 5 * CLUSTER, CLUSTER, 0x9001),
        ("ABSENT", 6 * CLUSTER, 100, None),
    ]


def test_clusters_in_order_are_one_extent() -> None:
    tables = Tables(*((8 + index) * CLUSTER | COPIED for index in range(40)))
    assert tables.kinds(0, 40 * CLUSTER) == [("DATA", 0, 40 * CLUSTER, 8 * CLUSTER)]
    assert tables.kinds(5, 39 * CLUSTER) == [("DATA", 5, 39 * CLUSTER, 8 * CLUSTER + 5)]


def test_an_absent_table_is_one_step() -> None:
    assert Tables().kinds(SPAN, SPAN) == [("ABSENT", SPAN, SPAN, None)]


def test_lookups_ask_for_l1_pages_first_then_for_l2_pages() -> None:
    tables = Tables(10 * CLUSTER)
    both = dict(tables.pages)
    tables.pages = {}
    answer = tables.map.lookup(0, CLUSTER, tables.pages, FILE_SIZE)
    assert isinstance(answer, Missing)
    assert answer.ranges == [(L1_AT, CLUSTER)]
    tables.pages = {L1_AT: both[L1_AT]}
    answer = tables.map.lookup(0, CLUSTER, tables.pages, FILE_SIZE)
    assert isinstance(answer, Missing)
    assert answer.ranges == [(L2_AT, CLUSTER)]


def test_what_a_short_file_lacks_of_its_last_cluster_is_zeros() -> None:
    tables = Tables(10 * CLUSTER)
    answer = tables.map.lookup(0, CLUSTER, tables.pages, 10 * CLUSTER + 1000)
    assert answer == [Extent(Kind.DATA, 0, 1000, 10 * CLUSTER), Extent(Kind.ZERO, 1000, CLUSTER - 1000)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "version", "words"),
    [
        (10 * CLUSTER + 512, 3, "unaligned"),
        (100 * CLUSTER, 3, "beyond the end of the file"),
        (COMPRESSED | 100 * CLUSTER, 3, "beyond the end of the file"),
        (ZERO, 2, "pre-v3"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused_and_no_other(entry: int, version: int, words: str) -> None:
    tables = Tables(10 * CLUSTER, entry, version=version)
    with pytest.raises(CorruptImage, match=words) as caught:
        tables.lookup(0, 2 * CLUSTER)
    assert caught.value.offset == L2_AT + 8
    assert tables.kinds(0, CLUSTER) == [("DATA", 0, CLUSTER, 10 * CLUSTER)]


def test_a_table_that_is_not_aligned_is_refused() -> None:
    tables = Tables()
    tables.pages[L1_AT] = struct.pack(">2Q", L2_AT + 512, 0).ljust(CLUSTER, b"\0")
    with pytest.raises(CorruptImage, match="unaligned"):
        tables.lookup(0, CLUSTER)


def test_locate_finds_plain_clusters_and_nothing_else() -> None:
    tables = Tables(10 * CLUSTER | COPIED, ZERO, COMPRESSED | 0x9000, 0, 11 * CLUSTER)
    found = [tables.map.locate(index * CLUSTER + 7, 9, tables.pages, FILE_SIZE) for index in range(5)]
    assert found == [10 * CLUSTER + 7, None, None, None, 11 * CLUSTER + 7]
    assert tables.map.locate(CLUSTER - 1, 2, tables.pages, FILE_SIZE) is None
    assert tables.map.locate(0, 8, tables.pages, 10 * CLUSTER) is None


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-12)
    return packer.compress(data) + packer.flush()


def test_what_follows_a_compressed_cluster_is_ignored() -> None:
    data = bytes(range(256)) * 16
    assert unpack(deflated(data) + b"rest", "zlib", CLUSTER) == data


@pytest.mark.parametrize("data", [b"", b"garbage that is no stream", deflated(b"too short")])
def test_a_compressed_cluster_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptImage, match="cannot be unpacked"):
        unpack(data, "zlib", CLUSTER)


def test_a_compressed_cluster_never_unpacks_to_more_than_a_cluster() -> None:
    assert unpack(deflated(bytes(1 << 24)), "zlib", CLUSTER) == bytes(CLUSTER)


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_what_is_packed_is_unpacked(method: str) -> None:
    data = bytes(range(256)) * 16
    packed = pack(memoryview(data), method)
    assert packed is not None
    assert len(packed) < len(data)
    assert unpack(packed + b"rest", method, CLUSTER) == data


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_what_would_not_become_smaller_is_not_packed(method: str) -> None:
    assert pack(memoryview(random.Random(1).randbytes(CLUSTER)), method) is None


def test_packed_clusters_lie_behind_each_other() -> None:
    assert laid_out([3000, 3000, 100], CLUSTER, 65535) == [(0, 3000), (3000, 3000), (6000, 100)]


def test_no_space_has_more_references_than_can_be_counted() -> None:
    assert laid_out([100, 100, 4000, 100, 100], CLUSTER, 3) == [
        (0, 100),
        (100, 100),
        (200, 4000),
        (4200, 100),
        (4300, 100),
    ]
    assert laid_out([100, 4000, 100], CLUSTER, 1) == [(0, 100), (CLUSTER, 4000), (2 * CLUSTER, 100)]
