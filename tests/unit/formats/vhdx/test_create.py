"""New images: what they hold, which are refused, and in which order they are written."""

import asyncio
from dataclasses import replace

import pytest

from tests.support.direct import SparseBytes
from vblk.codec.guid import Guid, new_guid
from vblk.errors import ImageError, OptionError
from vblk.formats.vhdx import check_image, load_image
from vblk.formats.vhdx.create import NewVhdx, ParentFacts, default_block_size, plan_creation
from vblk.formats.vhdx.image import VhdxImage
from vblk.units import GIB, KIB, MIB, TIB

PARENT = ParentFacts(
    data_write_guid=new_guid(),
    disk_id=new_guid(),
    size=3 * GIB,
    logical_sector_size=4096,
    physical_sector_size=4096,
    paths={"relative_path": ".\\base.vhdx"},
)


def made(new: NewVhdx, stages: int = 3) -> tuple[VhdxImage, SparseBytes]:
    creation = plan_creation(new)
    pieces = [write for stage in creation.stages[:stages] for write in stage.writes]
    file = SparseBytes(pieces, creation.length)
    return asyncio.run(load_image(file.read, file.length, filename="new.vhdx")), file


def test_a_new_image_is_clean_and_has_what_was_asked_for() -> None:
    disk_id = new_guid()
    new = NewVhdx(
        size=5 * GIB, block_size=4 * MIB, log_size=3 * MIB, logical_sector_size=512, disk_id=disk_id
    )
    image, file = made(new)
    report = asyncio.run(check_image(image, file.read))
    assert (report.findings, report.states) == ([], {"ZERO": 1280})
    assert (image.virtual_size, image.block_size, image.header.log_length) == (5 * GIB, 4 * MIB, 3 * MIB)
    assert (image.logical_sector_size, image.physical_sector_size, image.disk_id) == (512, 4096, disk_id)
    assert (image.type, image.creator, image.dirty_log) == ("dynamic", "vblk", None)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("size", [MIB, 5 * GIB + 4096, 64 * TIB])
def test_every_size_and_sector_makes_a_clean_image(size: int, sector: int) -> None:
    image, file = made(NewVhdx(size=size, logical_sector_size=sector, block_size=256 * MIB))
    report = asyncio.run(check_image(image, file.read))
    assert report.findings == []
    assert report.total_blocks == -(-size // (256 * MIB))


def test_a_fixed_image_has_all_blocks_in_order() -> None:
    image, file = made(NewVhdx(size=5 * GIB, block_size=MIB, fixed=True))
    report = asyncio.run(check_image(image, file.read))
    assert (report.findings, report.states, report.fragmented_blocks) == ([], {"FULLY_PRESENT": 5120}, 0)
    assert image.type == "fixed"


def test_blocks_are_not_present_when_their_state_is_not_asked_for() -> None:
    image, file = made(NewVhdx(size=GIB, block_state_zero=False))
    assert asyncio.run(check_image(image, file.read)).states == {"NOT_PRESENT": 128}


def test_a_child_takes_over_what_describes_the_disk() -> None:
    image, file = made(NewVhdx(parent=PARENT))
    report = asyncio.run(check_image(image, file.read))
    assert report.findings == []
    assert image.locator is not None
    assert image.locator.accepts(PARENT.data_write_guid)
    assert image.locator.paths == PARENT.paths
    assert (image.virtual_size, image.disk_id) == (3 * GIB, PARENT.disk_id)
    assert (image.type, image.logical_sector_size, image.block_size) == ("differencing", 4096, 2 * MIB)


def test_two_images_differ_in_every_identity() -> None:
    one, _ = made(NewVhdx(size=GIB))
    two, _ = made(NewVhdx(size=GIB))
    guids = [
        guid for image in (one, two) for guid in (image.disk_id, image.file_write_guid, image.data_write_guid)
    ]
    assert len(set(guids)) == 6
    assert all(isinstance(guid, Guid) for guid in guids)


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_what_was_not_finished_is_no_image(stages: int) -> None:
    with pytest.raises(ImageError):
        made(NewVhdx(size=GIB), stages)


def test_a_file_with_the_marker_is_refused_as_unfinished() -> None:
    with pytest.raises(ImageError, match="never finished"):
        made(NewVhdx(size=GIB), 2)


@pytest.mark.parametrize(
    ("size", "block_size"), [(GIB, 8), (GIB + 1, 16), (101 * GIB, 32), (33 * TIB, 64), (512, 8)]
)
def test_block_sizes_grow_with_the_disk(size: int, block_size: int) -> None:
    assert default_block_size(size) == block_size * MIB


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (NewVhdx(), "needs a size"),
        (NewVhdx(size=0), "cannot be empty"),
        (NewVhdx(size=65 * TIB), "max of 64TB"),
        (NewVhdx(size=1000), "not a multiple"),
        (NewVhdx(size=2560, logical_sector_size=4096), "not a multiple"),
        (NewVhdx(size=GIB, block_size=512 * KIB), "multiple of 1 MB"),
        (NewVhdx(size=GIB, block_size=3 * MIB), "power of two"),
        (NewVhdx(size=GIB, block_size=512 * MIB), "must not exceed 268435456"),
        (NewVhdx(size=GIB, log_size=0), "multiple of 1 MB"),
        (NewVhdx(size=GIB, log_size=4 * GIB), "smaller than 4 GB"),
        (NewVhdx(size=GIB, logical_sector_size=1024), "512 or 4096"),
        (NewVhdx(size=GIB, physical_sector_size=1024), "512 or 4096"),
        (NewVhdx(parent=PARENT, logical_sector_size=512), "must be the parent's"),
        (NewVhdx(parent=PARENT, fixed=True), "cannot be fixed"),
        (NewVhdx(parent=replace(PARENT, paths={"relative_path": "\udcff"})), "no text"),
        (NewVhdx(parent=replace(PARENT, paths={"relative_path": "x" * 40000})), "cannot hold"),
    ],
)
def test_what_no_image_can_be_is_refused(new: NewVhdx, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_creation(new)
