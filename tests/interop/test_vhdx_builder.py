"""The test builder of VHDX files is believed only because other readers agree with it."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.readers import dissect, qemu_sha256, seven_zip_sha256, sha256_through, vhdi
from tests.support.vhdx.chain import Chain, blocks_of_writes
from tests.support.vhdx.crc32c import crc32c
from tests.support.vhdx.image import Block, State, Vhdx
from tests.support.vhdx.journal import Entry, Page
from tests.support.vhdx.records import KIB, MIB

pytestmark = pytest.mark.interop

GEOMETRIES = [
    pytest.param({}, id="plain"),
    pytest.param({"order": ("log", "bat", "metadata", "payload")}, id="bat-before-metadata"),
    pytest.param(
        {"order": ("payload", "bat", "metadata", "log"), "gap": 3 * MIB}, id="payload-first-with-gaps"
    ),
    pytest.param({"block_size": 2 * MIB, "size": 15 * MIB + 64 * KIB}, id="last-block-cut"),
    pytest.param({"block_size": 32 * MIB, "size": 70 * MIB}, id="32MiB-blocks"),
    pytest.param({"size": 300 * MIB, "block_size": 256 * MIB}, id="256MiB-blocks"),
    pytest.param({"size": 3 * MIB}, id="three-blocks"),
    pytest.param({"size": 256 * KIB, "block_size": 2 * MIB}, id="smaller-than-a-block"),
    pytest.param({"log_length": 4 * MIB, "physical_sector_size": 4096}, id="longer-log-4096-physical"),
    pytest.param({"placing": (9, 0, 4)}, id="blocks-out-of-order"),
]


def sample(**own: Any) -> Vhdx:
    vhdx = Vhdx(**own)
    ends = [(0, 100 * KIB), (4 * MIB + 512 * 8, 16 * KIB), (9 * MIB, MIB), (vhdx.size - 64 * KIB, 64 * KIB)]
    vhdx.blocks.update(blocks_of_writes(vhdx, [w for w in ends if w[0] < vhdx.size], 5, partial=False))
    for number, state in ((1, State.ZERO), (2, State.UNMAPPED), (3, State.UNDEFINED)):
        if number < vhdx.block_count and number not in vhdx.blocks:
            vhdx.blocks[number] = Block(state)
    return vhdx


def test_the_checksum_has_its_published_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_the_checksum_passes_over_zeros_as_if_they_were_fed() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"ab" + bytes(200) + b"c") == crc32c((b"ab" + bytes(200) + b"cx")[:-1])
    assert crc32c(bytes(60) + b"\1" + bytes(63)) != crc32c(bytes(60) + b"\1" + bytes(64))


@pytest.mark.parametrize("own", GEOMETRIES)
def test_qemu_and_dissect_read_what_the_builder_meant(tmp_path: Path, own: dict[str, Any]) -> None:
    vhdx = sample(**own)
    path = vhdx.build(tmp_path / "a.vhdx")
    meant = vhdx.model().sha256()
    assert qemu_sha256(path, tmp_path) == meant
    with dissect(path) as read:
        assert sha256_through(read, vhdx.size) == meant


@pytest.mark.parametrize("own", GEOMETRIES)
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_7zip_and_libvhdi_read_what_the_builder_meant(
    tmp_path: Path, own: dict[str, Any], sector_size: int
) -> None:
    vhdx = sample(**(own | {"sector_size": sector_size}))
    path = vhdx.build(tmp_path / "a.vhdx")
    meant = vhdx.model().sha256()
    assert seven_zip_sha256(path, tmp_path) == meant
    with vhdi(path) as read:
        assert sha256_through(read, vhdx.size) == meant


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_7zip_reads_chains_as_the_builder_meant(tmp_path: Path, sector_size: int) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB), (7 * MIB, 64 * KIB)], size=20 * MIB, sector_size=sector_size)
    chain.child([(sector_size, 3 * sector_size), (5 * MIB, MIB)], states={2: State.ZERO})
    assert seven_zip_sha256(chain.top.path, tmp_path) == chain.top.model.sha256()
    with_states = chain.top.model.sha256()
    chain.child(
        [(8 * KIB, 8 * KIB), (6 * MIB + 4096, 2 * MIB)], block_size=2 * MIB, states={9: State.UNMAPPED}
    )
    assert seven_zip_sha256(chain.top.path, tmp_path) == chain.top.model.sha256() != with_states


def test_libvhdi_reads_a_simple_chain_as_the_builder_meant(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.base([(0, 3 * MIB), (7 * MIB, 64 * KIB)], size=20 * MIB)
    chain.child([(512, 1536), (5 * MIB, MIB)])
    with vhdi(chain.top.path, chain.levels[0].path) as read:
        assert sha256_through(read, 20 * MIB) == chain.top.model.sha256()


def test_qemu_replays_the_log_that_the_builder_made(tmp_path: Path) -> None:
    vhdx = Vhdx(blocks={0: Block(State.FULLY_PRESENT, b"a" * MIB)})
    parts = vhdx.assemble()
    offset = parts.append(MIB)
    parts.payload[1] = (offset, b"b" * MIB)
    guid = vhdx.disk_id
    parts.dirty(guid)
    page_offset, page = parts.bat_page(1, offset | State.FULLY_PRESENT)
    parts.put_log(0x8000, Entry(9, guid, [Page(page_offset, page)], flushed=parts.length, last=parts.length))
    path = parts.write(tmp_path / "dirty.vhdx")
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", path], check=False, capture_output=True)
    after = replace(vhdx, blocks=vhdx.blocks | {1: Block(State.FULLY_PRESENT, b"b" * MIB)})
    assert qemu_sha256(path, tmp_path) == after.model().sha256()
