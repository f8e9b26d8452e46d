"""Making the header of a new LUKS image.

Owns: where a new image has what, and its first key slot. The disk's key is
random and never leaves this process unencrypted.

Source: LUKS specification, section 3.1 "Partition initialization".
"""

from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

from vblk.formats.luks.cipher import CipherSpec, SectorCipher
from vblk.formats.luks.header import DIGEST_LENGTH, SALT_LENGTH, SLOTS, Header, KeySlot
from vblk.formats.luks.keys import derive, material_length, split
from vblk.units import KIB, align_up

ALIGNMENT: Final = 4 * KIB
"""What key materials and the payload of new images are aligned to, in bytes."""

ITERATIONS_MIN: Final = 1000
"""The fewest iterations that the specification has."""


class NewHeader(NamedTuple):
    """A header and the key material of its first slot, to be written before it."""

    header: Header
    material: bytes


def payload_offset(spec: CipherSpec) -> int:
    """Return where the payload of a new image begins, in bytes."""
    return ALIGNMENT + SLOTS * align_up(material_length(spec.key_bytes), ALIGNMENT)


def plan_header(
    spec: CipherSpec, hash_name: str, passphrase: bytes, iterations: int, random: Callable[[int], bytes]
) -> NewHeader:
    """Make a header with a new key that one passphrase unlocks.

    Args:
        spec: The cipher.
        hash_name: The hash of all derivations.
        passphrase: What unlocks the first slot.
        iterations: How often it is hashed; the key's digest takes an eighth.
        random: Returns so many bytes that nobody can guess.
    """
    iterations = max(iterations, ITERATIONS_MIN)
    key, slot_salt, digest_salt = random(spec.key_bytes), random(SALT_LENGTH), random(SALT_LENGTH)
    length = material_length(spec.key_bytes)
    slot_key = derive(hash_name, passphrase, slot_salt, iterations, spec.key_bytes)
    stripes = split(key, hash_name, random)
    material = SectorCipher(spec, slot_key).encrypt(0, stripes.ljust(length, b"\0"))
    digest_iterations = max(iterations // 8, ITERATIONS_MIN)
    step = align_up(length, ALIGNMENT)
    slots = [KeySlot(False, 0, bytes(SALT_LENGTH), ALIGNMENT + number * step) for number in range(SLOTS)]
    slots[0] = KeySlot(True, iterations, slot_salt, ALIGNMENT)
    header = Header(
        spec,
        hash_name,
        payload_offset(spec),
        derive(hash_name, key, digest_salt, digest_iterations, DIGEST_LENGTH),
        digest_salt,
        digest_iterations,
        str(UUID(bytes=random(16), version=4)),
        tuple(slots),
    )
    return NewHeader(header, material)
