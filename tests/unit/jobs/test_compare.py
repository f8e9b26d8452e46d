"""Comparison: the first difference, and nothing read that need not be."""

import asyncio
from pathlib import Path

import pytest

from vblk.graph.handle import Handle
from vblk.graph.registry import Graph
from vblk.jobs.compare import CompareError, Comparison, ImageComparison, first_difference
from vblk.opening import open_image
from vblk.units import MIB


def compare(first: Path | str, second: Path | str | None, *, strict: bool = False) -> Comparison:
    async def scenario() -> Comparison:
        async with Graph() as graph:
            one = await open_image(graph, str(first))
            two: Handle | None = None if second is None else await open_image(graph, str(second))
            length = one.size if two is None else min(one.size, two.size)
            return await ImageComparison((one, two), 0, length, strict=strict).run()

    return asyncio.run(scenario())


@pytest.mark.parametrize("place", [0, 511, 512, MIB - 1, MIB, 3 * MIB + 12345, 8 * MIB - 1])
def test_the_first_difference_is_told_by_its_sector(tmp_path: Path, place: int) -> None:
    content = bytearray(b"x" * (8 * MIB))
    (tmp_path / "a").write_bytes(content)
    for offset in {place, 8 * MIB - 1}:
        content[offset] = 0
    (tmp_path / "b").write_bytes(content)
    assert compare(tmp_path / "a", tmp_path / "b") == Comparison(content=place // 512 * 512)


def test_written_zeros_and_holes_are_the_same_content_and_a_different_status(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(4 * MIB))
    with (tmp_path / "b").open("wb") as file:
        file.truncate(4 * MIB)
    assert compare(tmp_path / "a", tmp_path / "b").equal
    assert compare(tmp_path / "a", tmp_path / "b", strict=True) == Comparison(status=0)
    assert compare(tmp_path / "a", None).equal


def test_data_behind_the_end_of_the_other_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2 * MIB) + b"x" + bytes(511))
    assert compare(tmp_path / "a", None) == Comparison(content=2 * MIB)


def faulty(path: Path, kind: str) -> str:
    return (
        f'json:{{"driver": "blkdebug", "image": {{"driver": "raw", "file": {{"driver": "file", "filename":'
        f' "{path}"}}}}, "inject-error": [{{"event": "none", "iotype": "{kind}", "errno": 5}}]}}'
    )


def test_a_file_compared_with_itself_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    assert compare(tmp_path / "a", tmp_path / "a").equal


@pytest.mark.parametrize(("kind", "reading"), [("read", True), ("block-status", False)])
def test_the_side_that_fails_is_told(tmp_path: Path, kind: str, reading: bool) -> None:
    (tmp_path / "a").write_bytes(b"x" * MIB)
    (tmp_path / "b").write_bytes(b"x" * MIB)
    with pytest.raises(CompareError) as caught:
        compare(tmp_path / "a", faulty(tmp_path / "b", kind))
    assert (caught.value.side, caught.value.offset, caught.value.reading) == (1, 0, reading)


@pytest.mark.parametrize("length", [1, 512, 513, 4096, 70000])
def test_the_bisection_finds_the_sector(length: int) -> None:
    for place in {0, length // 2, length - 1}:
        changed = bytearray(length)
        changed[place] = 1
        assert first_difference(bytes(length), changed) == place // 512 * 512
