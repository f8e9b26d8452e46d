"""Images that Windows and QEMU made: their content as others read it, their files untouched."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.catalogue import run_vblk
from tests.support.readers import sha256_of

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples"

NAMES = ("btrfs", "lvm2", "swap")

MIB = 1 << 20


def expected_digest(name: str) -> str:
    """Return what the samples' README says of the raw disk."""
    for line in (SAMPLES / "README.md").read_text().splitlines():
        if line.startswith(f"| {name}.vhdx.gz"):
            found = re.search(r"\b[0-9a-f]{64}\b", line)
            assert found
            return found.group()
    raise AssertionError(f"the README does not tell of {name}")


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples made by Windows are not beside this repository")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(400)
def test_what_windows_made_becomes_the_raw_disk_that_others_see(tmp_path: Path, name: str) -> None:
    image, target = tmp_path / f"{name}.vhdx", tmp_path / f"{name}.raw"
    with gzip.open(SAMPLES / f"{name}.vhdx.gz") as packed, image.open("wb") as file:
        shutil.copyfileobj(packed, file)
    before = sha256_of(image)
    ran = run_vblk("convert", "-f", "vhdx", "-O", "raw", image, target)
    assert ran.returncode == 0, ran.stderr
    assert sha256_of(target) == expected_digest(name)
    assert sha256_of(image) == before
    assert run_vblk("check", "-f", "vhdx", image).returncode == 0
    image.unlink()
    target.unlink()


@pytest.mark.interop
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("block_size", [0, 1, 2, 8, 16, 32, 64, 256])
@pytest.mark.parametrize("zero", ["on", "off"])
def test_what_qemu_made_becomes_the_raw_disk_that_qemu_sees(
    tmp_path: Path, subformat: str, block_size: int, zero: str
) -> None:
    image, theirs, ours = tmp_path / "q.vhdx", tmp_path / "theirs.raw", tmp_path / "ours.raw"
    options = f"subformat={subformat},block_size={block_size * MIB},block_state_zero={zero}"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", options, image, "37M"], check=True)
    writes = ["write -P 1 0 512", "write -P 2 1M 3M", "write -P 3 17M 100k", "write -P 4 36M 1M"]
    commands = [word for write in writes for word in ("-c", write)]
    subprocess.run(["qemu-io", "-f", "vhdx", *commands, image], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", image, theirs], check=True)
    before = sha256_of(image)
    ran = run_vblk("convert", "-f", "vhdx", "-O", "raw", image, ours)
    assert ran.returncode == 0, ran.stderr
    assert sha256_of(ours) == sha256_of(theirs)
    assert sha256_of(image) == before
    ran = run_vblk("check", "-f", "vhdx", image)
    assert ran.returncode == 0, ran.stdout + ran.stderr
