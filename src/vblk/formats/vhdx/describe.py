"""An image's facts for people and programs: the format-specific part of `info`.

Owns: names and shapes of the output, plain types only. It must not judge.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vblk.formats.vhdx.image import DirtyLog, VhdxImage
    from vblk.formats.vhdx.locator import ParentLocator


def describe(image: "VhdxImage") -> dict[str, Any]:
    """Return the facts of `image`, ready for JSON; sizes and offsets in bytes."""
    header = image.header
    facts: dict[str, Any] = {
        "type": image.type,
        "creator": image.creator,
        "block-size": image.block_size,
        "logical-sector-size": image.logical_sector_size,
        "physical-sector-size": image.physical_sector_size,
        "disk-id": str(image.disk_id),
        "file-write-guid": str(image.file_write_guid),
        "data-write-guid": str(image.data_write_guid),
        "sequence-number": image.sequence_number,
        "log": {
            "offset": header.log_offset,
            "length": header.log_length,
            "dirty": image.dirty_log is not None,
        },
        "regions": [
            {
                "name": region.name,
                "guid": str(region.guid),
                "offset": region.file_offset,
                "length": region.length,
                "required": region.required,
            }
            for region in image.regions.all()
        ],
    }
    if image.dirty_log is not None:
        facts["log"] |= _describe_log(image.dirty_log) | {"guid": str(image.log_guid)}
    if image.unknown_items:
        facts["unknown-metadata"] = [
            {"id": str(item.item_id), "length": item.length, "user": item.is_user}
            for item in image.unknown_items
        ]
    if image.locator is not None:
        facts["parent"] = _describe_locator(image.locator)
    if image.findings:
        facts["findings"] = [
            {"code": finding.code, "severity": finding.severity.value, "message": str(finding)}
            for finding in image.findings
        ]
    if image.read_only_reasons:
        facts["read-only-reasons"] = list(image.read_only_reasons)
    return facts


def _describe_log(log: "DirtyLog") -> dict[str, Any]:
    return {
        "replayable": log.replayable,
        "entries": log.entries,
        "changed-pages": log.pages,
        "zeroed-bytes": log.zeroed_bytes,
        "changed-bytes": dict(log.touches),
        "target-length": log.target_length,
    }


def _describe_locator(locator: "ParentLocator") -> dict[str, Any]:
    facts: dict[str, Any] = {"locator-type": str(locator.locator_type), "supported": locator.supported}
    if locator.linkage is not None:
        facts["linkage"] = str(locator.linkage)
    if locator.linkage2 is not None:
        facts["linkage2"] = str(locator.linkage2)
    facts["paths"] = locator.paths
    return facts
