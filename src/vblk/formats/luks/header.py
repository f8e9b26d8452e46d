"""The header of a LUKS image and its eight key slots.

Owns: the layout, and what of it is believed: every offset and count is checked
here, before a passphrase is tried.

    0   magic "LUKS" BA BE     6    version (2)
    8   cipher name (32)       40   cipher mode (32)      72   hash (32)
    104 payload sector (4)     108  key bytes (4)
    112 digest of the key (20) 132  its salt (32)         164  its iterations (4)
    168 UUID (40)              208  eight slots of 48 bytes:
        state (4)  iterations (4)  salt (32)  first sector of the key material (4)  stripes (4)

Source: LUKS specification, figures "PHDR layout" and "Key slot layout".
"""

import struct
from typing import Final, NamedTuple

from vblk.codec.ranges import first_overlap
from vblk.errors import CorruptImage, Reason, UnsupportedFeature, WrongFormat
from vblk.formats.luks.cipher import SECTOR, CipherSpec, hashed, parse_spec

MAGIC: Final = b"LUKS\xba\xbe"
VERSION: Final = 1
SLOTS: Final = 8
STRIPES: Final = 4000
DIGEST_LENGTH: Final = 20
SALT_LENGTH: Final = 32
ITERATIONS_MAX: Final = 100_000_000
"""More would be a way to keep whoever opens the image busy for minutes."""

ENABLED: Final = 0x00AC71F3
DISABLED: Final = 0x0000DEAD

_FIXED: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
HEADER_LENGTH: Final = _FIXED.size + SLOTS * _SLOT.size


class KeySlot(NamedTuple):
    """One passphrase's way to the key; `key_offset` in bytes from the start of the image."""

    active: bool
    iterations: int
    salt: bytes
    key_offset: int
    stripes: int = STRIPES


class Header(NamedTuple):
    """A header; `payload_offset` in bytes from the start of the image."""

    spec: CipherSpec
    hash: str
    payload_offset: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[KeySlot, ...]

    def encode(self) -> bytes:
        """Return the header's bytes."""
        fixed = _FIXED.pack(
            MAGIC, VERSION, self.spec.cipher.encode(), self.spec.mode_text.encode(), self.hash.encode(),
            self.payload_offset // SECTOR, self.spec.key_bytes, self.digest, self.digest_salt,
            self.digest_iterations, self.uuid.encode(),
        )  # fmt: skip
        return fixed + b"".join(
            _SLOT.pack(
                ENABLED if slot.active else DISABLED, slot.iterations, slot.salt,
                slot.key_offset // SECTOR, slot.stripes,
            )
            for slot in self.slots
        )  # fmt: skip


def parse_header(data: bytes, file_size: int) -> Header:
    """Read a header and check it.

    Args:
        data: The first `HEADER_LENGTH` bytes of the image, fewer if it is shorter.
        file_size: The image's length in bytes.

    Raises:
        WrongFormat: It is no LUKS image.
        CorruptImage: It contradicts the specification.
        UnsupportedFeature: Its version, cipher or hash is not known here.
    """
    if not data.startswith(MAGIC):
        raise WrongFormat(Reason.WRONG_SIGNATURE, "Volume is not in LUKS format", offset=0)
    if len(data) < HEADER_LENGTH:
        raise CorruptImage(Reason.TRUNCATED, f"the header ends after {len(data)} bytes", offset=0)
    (
        _, version, cipher, mode, hash_name, payload, key_bytes,
        digest, digest_salt, digest_iterations, uuid,
    ) = _FIXED.unpack_from(data)  # fmt: skip
    if version != VERSION:
        raise UnsupportedFeature(
            Reason.UNSUPPORTED_VERSION, f"LUKS version {version} is not supported", offset=6
        )
    spec = parse_spec(_text(cipher, "cipher name", 8), _text(mode, "cipher mode", 40), key_bytes)
    hash_text = _text(hash_name, "hash", 72)
    hashed(hash_text, b"")
    _check_iterations(digest_iterations, 164)
    payload_offset = payload * SECTOR
    if payload_offset < HEADER_LENGTH:
        raise CorruptImage(
            Reason.BAD_VALUE, f"the payload begins at {payload_offset}, in the header", offset=104
        )
    if payload_offset > file_size:
        raise CorruptImage(
            Reason.OUT_OF_FILE,
            f"the payload begins at {payload_offset}, and the file has {file_size} bytes",
            offset=104,
        )
    slots = tuple(_parse_slot(data, number) for number in range(SLOTS))
    header = Header(
        spec,
        hash_text,
        payload_offset,
        digest,
        digest_salt,
        digest_iterations,
        _text(uuid, "UUID", 168),
        slots,
    )
    _check_places(header)
    return header


def _text(field: bytes, what: str, offset: int) -> str:
    text, nul, _ = field.partition(b"\0")
    if not nul:
        raise CorruptImage(Reason.BAD_VALUE, f"LUKS header {what} is not NUL terminated", offset=offset)
    if not all(0x20 < byte < 0x7F for byte in text):
        raise CorruptImage(Reason.BAD_VALUE, f"LUKS header {what} is no name", offset=offset)
    return text.decode("ascii")


def _check_iterations(iterations: int, offset: int) -> None:
    if not 1 <= iterations <= ITERATIONS_MAX:
        raise CorruptImage(
            Reason.LIMIT, f"{iterations} iterations are not from 1 to {ITERATIONS_MAX}", offset=offset
        )


def _slot_offset(number: int) -> int:
    return _FIXED.size + number * _SLOT.size


def _parse_slot(data: bytes, number: int) -> KeySlot:
    offset = _slot_offset(number)
    state, iterations, salt, key_sector, stripes = _SLOT.unpack_from(data, offset)
    if state not in (ENABLED, DISABLED):
        raise CorruptImage(
            Reason.BAD_VALUE, f"Keyslot {number} state {state:#x} is neither on nor off", offset=offset
        )
    slot = KeySlot(state == ENABLED, iterations, salt, key_sector * SECTOR, stripes)
    if slot.active:
        if stripes != STRIPES:
            raise CorruptImage(
                Reason.BAD_VALUE,
                f"Keyslot {number} is corrupted (stripes {stripes} != {STRIPES})",
                offset=offset + 44,
            )
        _check_iterations(iterations, offset + 4)
    return slot


def _check_places(header: Header) -> None:
    """Check that the header, the key materials in use and the payload lie apart."""
    length = header.spec.key_bytes * STRIPES
    places = [(0, HEADER_LENGTH, "the header")]
    for number, slot in enumerate(header.slots):
        if not slot.active:
            continue
        if slot.key_offset + length > header.payload_offset:
            raise CorruptImage(
                Reason.OVERLAP,
                f"Keyslot {number} is overlapping with the encrypted payload",
                offset=_slot_offset(number) + 40,
            )
        places.append((slot.key_offset, length, f"Keyslot {number}"))
    found = first_overlap(places)
    if found is not None:
        raise CorruptImage(Reason.OVERLAP, f"{found[1]} is overlapping with {found[0]}", offset=found[2])
