"""What merging, committing and rebasing leave is read by everybody else as by vblk."""

import hashlib
from pathlib import Path

import pytest

from tests.support.command_line import good
from tests.support.readers import dissect, qemu_sha256, seven_zip_sha256, sha256_through, vhdi
from tests.support.vhdx.chain import Chain

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB


def chain_in(folder: Path, sector_size: int) -> tuple[list[Path], str]:
    """Build three levels; return their paths, the base first, and the digest of the top's disk."""
    chain = Chain(folder)
    chain.base([(0, 2 * MIB + 64 * KIB), (5 * MIB, 64 * KIB)], size=SIZE, sector_size=sector_size)
    chain.child([(64 * KIB, 8 * KIB), (3 * MIB, 12 * KIB)], states={6: 2, 7: 3}, block_size=MIB)
    chain.child([(MIB - 8 * KIB, 16 * KIB), (6 * MIB, 4 * KIB)], states={2: 2}, block_size=2 * MIB)
    return [level.path for level in chain.levels], hashlib.sha256(chain.top.model.read(0, SIZE)).hexdigest()


def assert_read_by_all(path: Path, digest: str, sector_size: int, scratch: Path) -> None:
    """Assert that everybody who can read an image without a parent finds the disk."""
    good("check", "-q", path)
    assert seven_zip_sha256(path, scratch) == digest
    with vhdi(path) as read:
        assert sha256_through(read, SIZE) == digest
    if sector_size == 512:
        assert qemu_sha256(path, scratch) == digest
        with dissect(path) as read:
            assert sha256_through(read, SIZE) == digest


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_merged_image_is_read_by_all(tmp_path: Path, sector_size: int) -> None:
    (base, _, top), digest = chain_in(tmp_path, sector_size)
    good("merge", "-q", "--into", base, top)
    assert_read_by_all(base, digest, sector_size, tmp_path)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_flattened_image_is_read_by_all(tmp_path: Path, sector_size: int) -> None:
    (base, middle, top), digest = chain_in(tmp_path, sector_size)
    good("rebase", "-b", "", top)
    base.unlink()
    middle.unlink()
    assert_read_by_all(top, digest, sector_size, tmp_path)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize(
    "words",
    [
        ("merge", "-q", "{top}"),
        ("merge", "-q", "--keep", "--into", "{base}", "{top}"),
        ("commit", "-q", "{top}"),
        ("commit", "-q", "-d", "{top}"),
        ("commit", "-q", "-b", "{base}", "{top}"),
        ("rebase", "-b", "base.vhdx", "{top}"),
        ("rebase", "-u", "-b", "child1.vhdx", "{top}"),
    ],
    ids=" ".join,
)
def test_seven_zip_reads_the_chain(tmp_path: Path, words: tuple[str, ...], sector_size: int) -> None:
    (base, middle, top), digest = chain_in(tmp_path, sector_size)
    good(*(word.format(base=base, top=top) for word in words))
    assert seven_zip_sha256(top if top.exists() else middle, tmp_path) == digest
