"""From a passphrase to the key: PBKDF2 and the anti-forensic splitter.

Owns: the derivation of keys, and the stripes over which a key is spread so that
the loss of any of them loses it. Every function may take long: callers run them
on a worker.

Source: LUKS specification, sections 2.4 "Anti-forensic stripes" and 3 "LUKS
operations"; RFC 2898 for PBKDF2.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from vblk.formats.luks.cipher import SECTOR, SectorCipher, hashed
from vblk.formats.luks.header import DIGEST_LENGTH, STRIPES, Header, KeySlot
from vblk.units import align_up

_COUNTER: Final = 4


def derive(hash_name: str, secret: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """Return `length` bytes derived by PBKDF2."""
    return hashlib.pbkdf2_hmac(hash_name, secret, salt, iterations, length)


def material_length(key_bytes: int) -> int:
    """Return the bytes of a slot's key material on the disk: whole sectors."""
    return align_up(key_bytes * STRIPES, SECTOR)


def _diffused(block: bytes, hash_name: str) -> bytes:
    """Spread every bit of a block over itself."""
    size = len(hashed(hash_name, b""))
    return b"".join(
        hashed(hash_name, number.to_bytes(_COUNTER, "big") + block[at : at + size])[: len(block) - at]
        for number, at in enumerate(range(0, len(block), size))
    )


def _combined(stripes: bytes, length: int, hash_name: str) -> bytes:
    """Return what the stripes but the last come to."""
    block = bytes(length)
    for at in range(0, len(stripes), length):
        block = _diffused(_xor(block, stripes[at : at + length]), hash_name)
    return block


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


def split(key: bytes, hash_name: str, random: Callable[[int], bytes]) -> bytes:
    """Spread a key over stripes of random bytes."""
    stripes = random(len(key) * (STRIPES - 1))
    return stripes + _xor(_combined(stripes, len(key), hash_name), key)


def merge(stripes: bytes, length: int, hash_name: str) -> bytes:
    """Return the key of `length` bytes that was spread."""
    last = len(stripes) - length
    return _xor(_combined(stripes[:last], length, hash_name), stripes[last:])


def unlock(header: Header, slot: KeySlot, material: bytes, passphrase: bytes) -> bytes | None:
    """Return the key behind a slot, or None: it is not the passphrase of this slot.

    `material` is the slot's key material, `material_length` bytes.
    """
    length = header.spec.key_bytes
    slot_key = derive(header.hash, passphrase, slot.salt, slot.iterations, length)
    stripes = SectorCipher(header.spec, slot_key).decrypt(0, material)[: length * STRIPES]
    key = merge(stripes, length, header.hash)
    digest = derive(header.hash, key, header.digest_salt, header.digest_iterations, DIGEST_LENGTH)
    return key if hmac.compare_digest(digest, header.digest) else None
