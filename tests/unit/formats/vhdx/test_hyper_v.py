"""What stands against an image's use by Hyper-V: each objection by its code, and none against a good file."""

from dataclasses import replace

import pytest

from tests.support.damaged import DAMAGES
from tests.support.small_vhdx import (
    BAT,
    BAT_AT,
    FULLY,
    LOCATOR,
    METADATA,
    METADATA_AT,
    MIB,
    PAYLOAD_AT,
    Small,
    load,
    locator,
    region_entry,
    run,
)
from vblk.formats.vhdx import check_image
from vblk.formats.vhdx.hyper_v import HostFile, check_for_hyper_v

GOOD = HostFile("disk.vhdx", 8 * MIB, 0, compressed=False, encrypted=False)
LINKAGE = {"parent_linkage": "{00112233-4455-6677-8899-aabbccddeeff}"}


def codes(small: Small, host: HostFile = GOOD, trouble: str | None = None) -> dict[str, str]:
    """Return the objections to a file, each code with its severity."""
    file = small.build()
    image = load(file)
    report = run(check_image(image, file.read))
    found = check_for_hyper_v(image, report.counts, report.allocated_blocks, host, trouble)
    return {finding.code: finding.severity.value for finding in found}


def child(pairs: dict[str, str]) -> Small:
    """Return a file whose parent locator has these pairs beside the linkage."""
    return Small(bits=2, extra_items={LOCATOR: locator(LINKAGE | pairs)})


def test_nothing_stands_against_a_good_file() -> None:
    full = {block: PAYLOAD_AT + block * MIB | FULLY for block in range(4)}
    assert codes(Small()) == codes(Small(bits=1, entries=full)) == {}
    assert codes(child({"relative_path": ".\\p.VHDX", "absolute_win32_path": "D:\\p.avhdx"})) == {}


@pytest.mark.parametrize(
    ("host", "code", "severity"),
    [
        (GOOD._replace(name="disk.vhd"), "HV1", "error"),
        (GOOD._replace(hole_bytes=4096), "HV2", "warning"),
        (GOOD._replace(compressed=True), "HV3", "warning"),
        (GOOD._replace(encrypted=True), "HV4", "warning"),
        (GOOD._replace(size=8 * MIB + 512), "HV5", "warning"),
        (GOOD._replace(size=(16 << 40) + MIB), "HV6", "warning"),
    ],
)
def test_what_the_host_does_to_the_file(host: HostFile, code: str, severity: str) -> None:
    assert codes(Small(), host) == {code: severity}


@pytest.mark.parametrize(
    ("small", "code", "severity"),
    [
        (DAMAGES["L29"].small, "HV7", "warning"),
        (
            Small(regions=(region_entry(BAT, BAT_AT, flags=0), region_entry(METADATA, METADATA_AT))),
            "HV8",
            "warning",
        ),
        (DAMAGES["B12"].small, "HV9", "error"),
        (replace(Small(), logical=4096, physical=512), "HV10", "warning"),
        (Small(bits=1), "HV11", "warning"),
        (Small(size=4 * MIB - 512), "HV12", "warning"),
    ],
)
def test_what_is_in_the_file(small: Small, code: str, severity: str) -> None:
    assert codes(small) == {code: severity}


@pytest.mark.parametrize(
    ("pairs", "code", "severity"),
    [
        ({}, "HV13", "error"),
        ({"relative_path": "./p.vhdx"}, "HV14", "error"),
        ({"absolute_win32_path": "D:\\p.img"}, "HV14", "error"),
        ({"relative_path": ".\\p.vhdx", "parent_linkage2": LINKAGE["parent_linkage"]}, "HV15", "warning"),
    ],
)
def test_how_the_parent_is_named(pairs: dict[str, str], code: str, severity: str) -> None:
    assert codes(child(pairs)) == {code: severity}


def test_an_unknown_kind_of_locator_is_an_error() -> None:
    strange = Small(bits=2, extra_items={LOCATOR: locator({}, kind=b"?" * 16)})
    assert codes(strange) == {"HV13": "error"}


def test_a_parent_that_does_not_open_is_an_error() -> None:
    assert codes(child({"relative_path": ".\\p.vhdx"}), trouble="not there") == {"HV16": "error"}
    assert codes(Small(), trouble="not there") == {}
