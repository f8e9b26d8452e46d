"""What Hyper-V and Windows want of a VHDX file beside the format's own rules.

Owns: the judgement, from an image, what its check counted, and facts about the
host's file. It must not ask the file system for them: the shell does.

An error is what they refuse the file for; a warning is what they take, and what
costs something there or on the way there.

Source: [MS-VHDX] "Region Table Entry", "Parent Locator Entry"; the rest is what
Windows is seen and reported to do: docs/formats/vhdx.md, "For Hyper-V".
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.image import VhdxImage
from vblk.formats.vhdx.locator import KEY_ABSOLUTE, KEY_LINKAGE_2, KEY_RELATIVE, KEY_VOLUME
from vblk.units import MIB, TIB

EXTENSIONS = (".vhdx", ".avhdx")
NTFS_FILE_MAX = 16 * TIB
"""The longest file on an NTFS volume with its usual clusters of 4 KiB."""


class HostFile(NamedTuple):
    """The file that stores an image: its name, its length in bytes, and what its file system does to it."""

    name: str
    size: int
    hole_bytes: int
    compressed: bool
    encrypted: bool


def check_for_hyper_v(
    image: VhdxImage, counts: Mapping[str, int], allocated: int, host: HostFile, parent_trouble: str | None
) -> list[Finding]:
    """Return what Hyper-V would refuse or stumble over.

    Args:
        image: As loaded.
        counts: How many findings of each code its check has.
        allocated: How many of its blocks have space in the file.
        host: The file that stores it.
        parent_trouble: Why its parent does not open, if it has one that does not.
    """
    return [
        *_host_file(host),
        *_structures(image, counts, allocated),
        *(_parent(image, parent_trouble) if image.has_parent else ()),
    ]


def _error(code: str, message: str) -> Finding:
    return Finding(code, Severity.ERROR, message)


def _warning(code: str, message: str) -> Finding:
    return Finding(code, Severity.WARNING, message)


def _host_file(host: HostFile) -> Iterator[Finding]:
    if not host.name.lower().endswith(EXTENSIONS):
        yield _error("HV1", "the file's name ends neither in .vhdx nor in .avhdx")
    if host.hole_bytes:
        yield _warning(
            "HV2",
            f"{host.hole_bytes} bytes of the file are holes: a copy that keeps them is sparse on NTFS, and "
            "Hyper-V does not start with it; copy without them ('cp --sparse=never'), or say on Windows "
            "'fsutil sparse setflag FILE 0'",
        )
    if host.compressed:
        yield _warning(
            "HV3",
            "the file is compressed by its file system: Hyper-V wants it uncompressed ('chattr -c', and on "
            "NTFS 'compact /u'), then copied anew",
        )
    if host.encrypted:
        yield _warning(
            "HV4", "the file is encrypted by its file system: Hyper-V wants it in clear ('cipher /d' on NTFS)"
        )
    if host.size % MIB:
        yield _warning("HV5", f"the file has {host.size} bytes, which is no multiple of 1 MiB")
    if host.size > NTFS_FILE_MAX:
        yield _warning(
            "HV6", "the file is longer than 16 TiB: NTFS with clusters of 4 KiB cannot hold it; ReFS can"
        )


def _structures(image: VhdxImage, counts: Mapping[str, int], allocated: int) -> Iterator[Finding]:
    if image.dirty_log is not None and image.dirty_log.replayable:
        yield _warning(
            "HV7",
            "the log was not written back: Windows does so whenever it opens the file, even for reading, and "
            "has to be allowed to write to it; 'vblk check -r all' does it here",
        )
    optional = [region.name for region in (image.regions.bat, image.regions.metadata) if not region.required]
    if optional:
        yield _warning("HV8", f"the {' and the '.join(optional)} are not marked as required, as they must be")
    if counts.get("B12"):
        yield _error(
            "HV9",
            "blocks without data name places in the file, which Hyper-V refuses; 'vblk check -r all' clears "
            "them",
        )
    if image.physical_sector_size < image.logical_sector_size:
        yield _warning(
            "HV10",
            f"the physical sector size, {image.physical_sector_size}, is less than the logical one, "
            f"{image.logical_sector_size}",
        )
    if image.type == "fixed" and allocated < image.geometry.payload_blocks:
        yield _warning(
            "HV11",
            f"the image says that it is fixed, and {image.geometry.payload_blocks - allocated} of its "
            f"{image.geometry.payload_blocks} blocks have no space: it grows when they are written",
        )
    if image.virtual_size % MIB:
        yield _warning(
            "HV12",
            f"the disk has {image.virtual_size} bytes: Azure takes whole MiB only (and a fixed VHD, no VHDX)",
        )


def _parent(image: VhdxImage, trouble: str | None) -> Iterator[Finding]:
    locator = image.locator
    assert locator is not None
    if not locator.supported:
        yield _error("HV13", f"the parent locator is of an unknown type, {locator.locator_type}")
    elif not locator.paths:
        yield _error(
            "HV13", f"the parent locator has none of {KEY_RELATIVE}, {KEY_VOLUME} and {KEY_ABSOLUTE}"
        )
    for key, path in locator.paths.items():
        if "/" in path:
            yield _error("HV14", f"the {key} of the parent, '{path}', is no Windows path: it has slashes")
        if not path.lower().endswith(EXTENSIONS):
            yield _error("HV14", f"the {key} of the parent, '{path}', ends neither in .vhdx nor in .avhdx")
    if KEY_LINKAGE_2 in locator.pairs:
        yield _warning("HV15", "the parent is in the middle of a merge, which was not finished")
    if trouble is not None:
        yield _error("HV16", f"the parent does not open: {trouble}")
