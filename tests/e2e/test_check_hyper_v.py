"""`vblk check --for hyper-v`: objections beside the check, their status, and what a file system does."""

import json
import struct
from fcntl import ioctl
from pathlib import Path

from tests.support.catalogue import run_vblk
from tests.support.damaged import DAMAGES, content_of
from tests.support.filesystems import mounted, needs_root
from tests.support.small_vhdx import MIB, Small

GET_FLAGS, SET_FLAGS, COMPRESSED = 0x80086601, 0x40086602, 0x4


def dense(path: Path, small: Small) -> Path:
    """Write a file without holes."""
    content = content_of(small)
    path.write_bytes(content.read(0, content.length))
    return path


def test_a_good_file_has_nothing_against_it(tmp_path: Path) -> None:
    ran = run_vblk("check", "--for", "hyper-v", dense(tmp_path / "disk.vhdx", Small()))
    assert ran.stdout.endswith("For Hyper-V: nothing stands against it.\n")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_sparse_file_is_a_warning_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    content_of(Small()).save(path)
    ran = run_vblk("check", "--for", "hyper-v", path)
    assert "fsutil sparse setflag" in ran.stderr
    assert "[HV2]" in ran.stderr
    assert ran.stdout.endswith("For Hyper-V: 0 errors and 1 warnings.\n")
    assert ran.returncode == 0


def test_a_name_that_hyper_v_refuses_is_an_error(tmp_path: Path) -> None:
    path = dense(tmp_path / "disk.img", Small())
    assert run_vblk("check", path).returncode == 0
    ran = run_vblk("check", "--for", "hyper-v", "--output", "json", path)
    assert ran.returncode == 2
    assert [each["code"] for each in json.loads(ran.stdout)["hyper-v"]] == ["HV1"]


def test_a_parent_that_is_not_there_is_an_objection(tmp_path: Path) -> None:
    path = dense(tmp_path / "disk.avhdx", DAMAGES["B12-bitmap"].small)
    ran = run_vblk("check", "--for", "hyper-v", "--output", "json", path)
    codes = {each["code"]: each["message"] for each in json.loads(ran.stdout)["hyper-v"]}
    assert set(codes) == {"HV9", "HV16"}
    assert "cannot find the parent image" in codes["HV16"]


def test_objections_are_to_the_image_as_it_is_repaired(tmp_path: Path) -> None:
    path = dense(tmp_path / "disk.vhdx", DAMAGES["B12"].small)
    assert run_vblk("check", "--for", "hyper-v", path).returncode == 2
    ran = run_vblk("check", "-r", "all", "--for", "hyper-v", path)
    assert (ran.returncode, "[HV9]" in ran.stderr) == (0, False)


def test_other_platforms_are_refused_with_the_list(tmp_path: Path) -> None:
    ran = run_vblk("check", "--for", "azure", dense(tmp_path / "disk.vhdx", Small()))
    assert ran.returncode == 1
    assert "expecting 'hyper-v'): azure" in ran.stderr


@needs_root
def test_a_file_that_btrfs_compresses_is_a_warning(tmp_path: Path) -> None:
    with mounted("btrfs", 256 * MIB, tmp_path) as place:
        path = place / "disk.vhdx"
        with path.open("wb") as file:
            (flags,) = struct.unpack("=q", ioctl(file.fileno(), GET_FLAGS, bytes(8)))
            ioctl(file.fileno(), SET_FLAGS, struct.pack("=q", flags | COMPRESSED))
        dense(path, Small())
        ran = run_vblk("check", "--for", "hyper-v", path)
        assert "[HV3]" in ran.stderr
