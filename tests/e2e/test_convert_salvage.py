"""`vblk convert --salvage` of damaged VHDX images: damage becomes zeros and is told of, the rest is right."""

import asyncio
from pathlib import Path

import pytest

from tests.support.catalogue import run_vblk
from tests.support.damaged import DAMAGES, PIECE, content_of, look
from tests.support.small_vhdx import MIB
from tests.support.subject import Subject
from tests.support.vhdx.image import Vhdx

ZEROS = bytes(PIECE)


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("B1", (1,)),
        ("B3", (1,)),
        ("B4", (0,)),
        ("B5", (0, 2)),
        ("B4-in-part", (0,)),
        ("B9", ()),
        ("H3", ()),
        ("T1", ()),
        ("L2-and-more", ()),
        ("many", (2,)),
    ],
)
def test_a_damaged_image_is_salvaged_block_by_block(
    tmp_path: Path, name: str, damaged: tuple[int, ...]
) -> None:
    small = DAMAGES[name].small
    content = content_of(small)
    path, raw = tmp_path / "image.vhdx", tmp_path / "disk.raw"
    content.save(path)
    ran = run_vblk("convert", "--salvage", "-O", "raw", path, raw)
    assert ran.returncode == 0
    for block, line in zip(damaged, ran.stderr.splitlines(), strict=True):
        range_ = f"{small.block_size} bytes at offset {block * small.block_size}"
        assert line.startswith(f"vblk: warning: {range_} are lost and become zeros: block {block} ")
    disk = raw.read_bytes()
    assert len(disk) == small.size
    for offset, held in asyncio.run(look(content)).items():
        assert disk[offset : offset + PIECE] == (ZEROS if isinstance(held, str) else held)
    assert path.read_bytes() == content.read(0, content.length)


def test_a_child_without_its_sector_bitmap_is_salvaged_with_its_parent(tmp_path: Path) -> None:
    subject = Subject(tmp_path)
    chain = subject.chain()
    chain.child([(MIB + 512, 1024), (5 * MIB, MIB)])
    subject.use(chain)
    vhdx: Vhdx = chain.top.vhdx
    parts = vhdx.assemble()
    parts.bat[vhdx.bitmap_index(0)] = 0
    parts.write(subject.path)
    raw = tmp_path / "disk.raw"
    ran = run_vblk("convert", "--salvage", "-O", "raw", subject.path, raw)
    assert ran.returncode == 0
    assert "1048576 bytes at offset 1048576 are lost and become zeros" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    expected = bytearray(subject.model.read(0, 16 * MIB))
    expected[MIB : 2 * MIB] = bytes(MIB)
    assert raw.read_bytes() == expected


def test_without_salvage_nothing_is_made(tmp_path: Path) -> None:
    path, raw = tmp_path / "image.vhdx", tmp_path / "disk.raw"
    content_of(DAMAGES["B1"].small).save(path)
    assert run_vblk("convert", "-O", "raw", path, raw).returncode == 1
    assert not raw.exists()
