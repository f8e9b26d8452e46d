"""How sectors are encrypted: ciphers, modes and initial vectors by their LUKS names.

Owns: the names (`aes`, `xts-plain64`, `cbc-essiv:sha256`), the lengths of keys,
and the transformation of whole sectors. The arithmetic of AES is that of the
`cryptography` package, which is loaded when the first key is used.

Source: LUKS specification, "Cipher and hash registry"; dm-crypt's documentation
for `plain`, `plain64` and `essiv`.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from vblk.errors import Reason, UnsupportedFeature

SECTOR: Final = 512
"""The unit of encryption, in bytes; sectors are numbered from the start of what is encrypted."""

HASHES: Final = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
_BLOCK: Final = 16
_KEY_LENGTHS: Final = {"xts": (32, 64), "cbc": (16, 24, 32), "ecb": (16, 24, 32)}


class CipherSpec(NamedTuple):
    """What encrypts: `aes`, a mode, a generator of initial vectors with its hash, the key's bytes."""

    cipher: str
    mode: str
    ivgen: str
    ivgen_hash: str
    key_bytes: int

    @property
    def key_bits(self) -> int:
        """The bits of the AES key; XTS uses two keys."""
        return self.key_bytes * (4 if self.mode == "xts" else 8)

    @property
    def mode_text(self) -> str:
        """The mode as a header spells it."""
        if self.mode == "ecb":
            return "ecb"
        return f"{self.mode}-{self.ivgen}" + (f":{self.ivgen_hash}" if self.ivgen_hash else "")


def parse_spec(cipher: str, mode_text: str, key_bytes: int) -> CipherSpec:
    """Return the specification behind a header's names.

    Raises:
        UnsupportedFeature: There is none here.
    """
    mode, _, generator = mode_text.partition("-")
    ivgen, _, ivgen_hash = generator.partition(":")
    spec = CipherSpec(cipher, mode, ivgen, ivgen_hash, key_bytes)
    known = cipher == "aes" and key_bytes in _KEY_LENGTHS.get(mode, ())
    if mode == "ecb":
        known = known and not generator
    elif ivgen == "essiv":
        known = known and ivgen_hash in HASHES
    else:
        known = known and ivgen in ("plain", "plain64") and not ivgen_hash
    if not known:
        raise UnsupportedFeature(
            Reason.UNKNOWN_REQUIRED,
            f"the cipher {cipher}-{mode_text} with a key of {key_bytes} bytes is not supported",
        )
    return spec


def hashed(name: str, data: bytes) -> bytes:
    """Return a digest.

    Raises:
        UnsupportedFeature: No such hash is here.
    """
    try:
        if name in HASHES:
            return hashlib.new(name, data).digest()
    except ValueError:  # this system's library is without it
        pass
    raise UnsupportedFeature(Reason.UNKNOWN_REQUIRED, f"the hash {name} is not supported")


class SectorCipher:
    """Encrypts and decrypts whole sectors under one key.

    Concurrency: may be used on several threads at a time.
    """

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        """Take a key of `spec.key_bytes` bytes."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        assert len(key) == spec.key_bytes, "a key of another length"
        algorithm = algorithms.AES(key)
        self._vector = _vectors(spec, key)
        self._new: Callable[[bytes], Any]
        if spec.mode == "xts":
            self._new = lambda vector: Cipher(algorithm, modes.XTS(vector))
        elif spec.mode == "cbc":
            self._new = lambda vector: Cipher(algorithm, modes.CBC(vector))
        else:
            self._new = lambda vector: Cipher(algorithm, modes.ECB())

    def encrypt(self, first_sector: int, data: bytes | bytearray | memoryview) -> bytes:
        """Encrypt whole sectors, numbered from `first_sector` on."""
        return self._each(first_sector, data, lambda vector: self._new(vector).encryptor())

    def decrypt(self, first_sector: int, data: bytes | bytearray | memoryview) -> bytes:
        """Decrypt whole sectors, numbered from `first_sector` on."""
        return self._each(first_sector, data, lambda vector: self._new(vector).decryptor())

    def _each(
        self, first_sector: int, data: bytes | bytearray | memoryview, start: Callable[[bytes], Any]
    ) -> bytes:
        assert len(data) % SECTOR == 0, "not whole sectors"
        view, vector = memoryview(data), self._vector
        return b"".join(
            [
                start(vector(number)).update(view[at : at + SECTOR])
                for number, at in enumerate(range(0, len(view), SECTOR), first_sector)
            ]
        )


def _vectors(spec: CipherSpec, key: bytes) -> Callable[[int], bytes]:
    """Return the function from a sector's number to its initial vector."""
    if spec.ivgen == "plain":
        return lambda sector: (sector & 0xFFFFFFFF).to_bytes(_BLOCK, "little")
    if spec.ivgen != "essiv":
        return lambda sector: sector.to_bytes(_BLOCK, "little")
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    salted = Cipher(algorithms.AES(hashed(spec.ivgen_hash, key)), modes.ECB())
    return lambda sector: salted.encryptor().update(sector.to_bytes(_BLOCK, "little"))
