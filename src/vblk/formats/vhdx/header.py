"""The file type identifier and the two headers.

Owns: which of the headers is current, and whether this version may trust it. It
must not know the log's content, regions or metadata.
Ordering rule: a header with a right checksum and the greater sequence number is
the current one, whatever else it says; an unknown version in it is never a
reason to go back to the older copy, which describes a state that is gone.

Source: [MS-VHDX] "File Type Identifier", "Headers".
"""

import struct
from typing import NamedTuple

from vblk.codec.crc32c import crc32c_without
from vblk.codec.guid import ZERO_GUID, Guid
from vblk.errors import CorruptImage, Reason, UnsupportedFeature, WrongFormat
from vblk.formats.vhdx.finding import Finding, Severity
from vblk.formats.vhdx.layout import (
    CHECKSUM_OFFSET,
    CREATOR_OFFSET,
    CREATOR_SIZE,
    HEADER_AREA_SIZE,
    HEADER_OFFSETS,
    HEADER_SIZE,
    IDENTIFIER_SIGNATURE,
    SEQUENCE_NUMBER_MAX,
    SESSION_UPDATES_MAX,
)
from vblk.units import MIB

SIGNATURE = b"head"
VERSION = 1
LOG_VERSION = 0

HEADER_RECORD = struct.Struct("<4sIQ16s16s16sHHIQ")
"""
      0   4  "head"
      4   4  CRC-32C of 4096 bytes, this field taken as zero
      8   8  sequence number
     16  16  file write GUID    new with the first change of the file in a session
     32  16  data write GUID    new with the first change that a guest could see
     48  16  log GUID           zero: the log is empty
     64   2  log version, 0
     66   2  version, 1
     68   4  log length         multiple of 1 MiB
     72   8  log offset         multiple of 1 MiB
     80      reserved, ignored
"""


class Header(NamedTuple):
    """One valid copy of the header; `file_offset` says which."""

    file_offset: int
    sequence_number: int
    file_write_guid: Guid
    data_write_guid: Guid
    log_guid: Guid
    log_version: int
    version: int
    log_length: int
    log_offset: int

    @property
    def has_log(self) -> bool:
        """Whether the log may hold changes that are not in place yet."""
        return self.log_guid != ZERO_GUID


class Headers(NamedTuple):
    """The current header, and what is to be said about the two copies."""

    current: Header
    findings: tuple[Finding, ...]


def parse_identifier(data: bytes) -> str:
    """Check the signature at the start of a file and return the creator's name.

    Raises:
        WrongFormat: The file does not start as a VHDX file does.
    """
    if data[:8] != IDENTIFIER_SIGNATURE:
        reason = Reason.TRUNCATED if len(data) < 8 else Reason.WRONG_SIGNATURE
        raise WrongFormat(
            reason, "not a VHDX file: it does not start with the signature 'vhdxfile'", offset=0
        )
    raw = data[CREATOR_OFFSET : CREATOR_OFFSET + CREATOR_SIZE]
    text = raw.decode("utf-16-le", errors="replace")
    text = text.partition("\0")[0]
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def parse_header(data: bytes, file_offset: int) -> Header | None:
    """Return the header in the 4096 bytes `data`, or None if signature or checksum are wrong."""
    if len(data) != HEADER_SIZE or data[:4] != SIGNATURE:
        return None
    (
        _,
        checksum,
        sequence,
        file_write,
        data_write,
        log_guid,
        log_version,
        version,
        log_length,
        log_offset,
    ) = HEADER_RECORD.unpack_from(data)
    if crc32c_without(data, CHECKSUM_OFFSET) != checksum:
        return None
    return Header(
        file_offset,
        sequence,
        Guid(file_write),
        Guid(data_write),
        Guid(log_guid),
        log_version,
        version,
        log_length,
        log_offset,
    )


def choose_header(copies: tuple[bytes, bytes]) -> Headers:
    """Decide which of the two copies, 4096 bytes each, is current.

    Raises:
        CorruptImage: Neither is valid, or they contradict each other.
    """
    first, second = (parse_header(data, offset) for data, offset in zip(copies, HEADER_OFFSETS, strict=True))
    if first is None and second is None:
        raise CorruptImage(
            Reason.BAD_CHECKSUM,
            "both headers are damaged: a valid one has the signature 'head' and a right CRC-32C",
            offset=HEADER_OFFSETS[0],
        )
    if first is None or second is None:
        valid = first if first is not None else second
        assert valid is not None
        return Headers(valid, (_damaged_copy(copies[0 if first is None else 1], valid),))
    if first.sequence_number != second.sequence_number:
        return Headers(max(first, second, key=lambda header: header.sequence_number), ())
    if copies[0] != copies[1]:
        raise CorruptImage(
            Reason.DUPLICATE,
            f"both headers are valid with sequence number {first.sequence_number} and differ; "
            "the greater number should tell which is current",
            offset=HEADER_OFFSETS[1],
        )
    twin = Finding(
        "H6",
        Severity.WARNING,
        f"the two headers are identical; their sequence numbers should differ, both are "
        f"{first.sequence_number}",
        HEADER_OFFSETS[1],
    )
    return Headers(first, (twin,))


def _damaged_copy(data: bytes, valid: Header) -> Finding:
    """Say which copy was lost: the number in the damaged one is a hint, no more."""
    offset = HEADER_OFFSETS[0] if valid.file_offset == HEADER_OFFSETS[1] else HEADER_OFFSETS[1]
    claimed = HEADER_RECORD.unpack_from(data)[2] if len(data) == HEADER_SIZE and data[:4] == SIGNATURE else 0
    if claimed > valid.sequence_number:
        return Finding(
            "H4",
            Severity.ERROR,
            "the newer header is damaged; the older one is used, which may describe an earlier state",
            offset,
        )
    return Finding("H3", Severity.ERROR, "one of the two headers is damaged; the other is used", offset)


class HeaderVerdict(NamedTuple):
    """What is odd about the current header, and why that forbids writing."""

    findings: tuple[Finding, ...]
    read_only_reasons: tuple[str, ...]


def check_header(header: Header, file_size: int) -> HeaderVerdict:
    """Judge the current header's own fields.

    Args:
        header: The current header.
        file_size: Real length of the file in bytes.

    Raises:
        UnsupportedFeature: Its version, or that of a log in use, is unknown.
        CorruptImage: The log lies where it cannot be.
    """
    at = header.file_offset
    if header.version != VERSION:
        raise UnsupportedFeature(
            Reason.UNSUPPORTED_VERSION,
            f"VHDX version {header.version} is not supported; only version {VERSION} is",
            offset=at + 66,
        )
    findings: list[Finding] = []
    reasons: list[str] = []
    if header.log_version != LOG_VERSION:
        if header.has_log:
            raise UnsupportedFeature(
                Reason.UNSUPPORTED_VERSION,
                f"the log is in use and has version {header.log_version}; only {LOG_VERSION} is supported",
                offset=at + 64,
            )
        findings.append(
            Finding(
                "H9", Severity.WARNING, f"the unused log has version {header.log_version}, not 0", at + 64
            )
        )
    _check_log_place(header)
    log_missing = _check_log_extent(header, file_size)
    if log_missing is not None:
        findings.append(log_missing)
        reasons.append(log_missing.message)
    if header.sequence_number > SEQUENCE_NUMBER_MAX - SESSION_UPDATES_MAX:
        exhausted = "the header's sequence number cannot be increased any more"
        findings.append(Finding("H18", Severity.WARNING, exhausted, at + 8))
        reasons.append(exhausted)
    return HeaderVerdict(tuple(findings), tuple(reasons))


def _check_log_place(header: Header) -> None:
    at = header.file_offset
    if header.log_offset % MIB:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"the log's offset {header.log_offset:#x} is not a multiple of 1 MiB",
            offset=at + 72,
        )
    if header.log_length % MIB:
        raise CorruptImage(
            Reason.BAD_VALUE,
            f"the log's length {header.log_length:#x} is not a multiple of 1 MiB",
            offset=at + 68,
        )
    if header.log_length and header.log_offset < HEADER_AREA_SIZE:
        raise CorruptImage(
            Reason.OVERLAP,
            f"the log at {header.log_offset:#x} overlaps the first MiB, which holds the headers",
            offset=at + 72,
        )


def _check_log_extent(header: Header, file_size: int) -> Finding | None:
    at = header.file_offset
    if header.log_length == 0:
        if header.has_log:
            raise CorruptImage(Reason.BAD_LOG, "the log is in use and has no space", offset=at + 68)
        return Finding("H12", Severity.WARNING, "the file has no space for a log", at + 68)
    end = header.log_offset + header.log_length
    if end > file_size:
        if header.has_log:
            raise CorruptImage(
                Reason.TRUNCATED,
                f"the log is in use and reaches to {end:#x}, beyond the file's end at {file_size:#x}",
                offset=at + 72,
            )
        return Finding(
            "H15",
            Severity.WARNING,
            f"the unused log reaches to {end:#x}, beyond the file's end at {file_size:#x}",
            at + 72,
        )
    return None
