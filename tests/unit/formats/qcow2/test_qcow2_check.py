"""What the check says of damage that was made by hand: QEMU's sentences."""

import asyncio

import pytest

from tests.support.qcow2_disks import checked, new_image, opened

CLUSTER = 4096
SIZE = 64 * CLUSTER


async def _written() -> bytes:
    image = await new_image(SIZE, cluster_size=CLUSTER)
    async with opened(image, read_only=False) as (handle, leaf):
        await handle.write(0, b"a" * CLUSTER)
        await handle.write(5 * CLUSTER, b"b" * CLUSTER)
        await handle.flush()
        return await leaf.read(0, leaf.size)


# Where the image has what: header, refcount table, refcount block, L1, L2, two clusters.
COUNTS, L1, L2 = 2 * CLUSTER, 3 * CLUSTER, 4 * CLUSTER


def damaged(*changes: tuple[int, bytes]) -> bytes:
    image = bytearray(asyncio.run(_written()))
    for at, data in changes:
        image[at : at + len(data)] = data
    return bytes(image)


def entry(value: int) -> bytes:
    return value.to_bytes(8, "big")


def test_a_sound_image_has_nothing_and_is_counted() -> None:
    report = asyncio.run(checked(damaged()))
    assert (report.messages, report.errors, report.leaks) == ([], 0, 0)
    assert (report.allocated_clusters, report.total_clusters) == (2, 64)
    assert report.image_end_offset == 7 * CLUSTER


@pytest.mark.parametrize(
    ("change", "messages", "errors", "leaks"),
    [
        ((COUNTS + 10, b"\0\2"), ["Leaked cluster 5 refcount=2 reference=1"], 1, 1),
        ((COUNTS + 20, b"\0\1"), ["Leaked cluster 10 refcount=1 reference=0"], 0, 1),
        ((COUNTS + 10, b"\0\0"), ["ERROR cluster 5 refcount=0 reference=1"], 2, 0),
        ((L2, entry(6 * CLUSTER | 1 << 63)), ["ERROR cluster 6 refcount=1 reference=2"], 1, 1),
        ((L2, entry(5 * CLUSTER)), ["ERROR OFLAG_COPIED data cluster: l2_entry=5000 refcount=1"], 1, 0),
        ((L1, entry(L2)), ["ERROR OFLAG_COPIED L2 cluster: l1_index=0 l1_entry=4000 refcount=1"], 1, 0),
        ((L2, entry(5 * CLUSTER + 512)), ["ERROR offset=5200: Data cluster is not properly aligned"], 1, 1),
        ((L1, entry(L2 + 512)), ["ERROR l2_offset=4200: Table is not cluster aligned"], 1, 3),
        ((CLUSTER, entry(COUNTS + 512)), ["refcount block 0 is not cluster aligned"], 10, 0),
        ((L2, entry(1 << 40)), ["exceeding the end of the file by one cluster"], 1, 1),
    ],
)
def test_damage_is_told_in_the_words_of_qemu(
    change: tuple[int, bytes], messages: list[str], errors: int, leaks: int
) -> None:
    report = asyncio.run(checked(damaged(change)))
    for message in messages:
        assert any(message in told for told in report.messages), report.messages
    assert (report.errors, report.leaks) == (errors, leaks), report.messages
