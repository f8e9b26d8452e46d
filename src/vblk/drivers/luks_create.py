"""Making new LUKS images.

Owns: QEMU's options for them, how many iterations a time is worth here, and the
order of the writes: the header comes last, so that what was made half is no
image.
"""

import errno
import os
from dataclasses import dataclass
from typing import ClassVar, Final

from vblk.aio.clock import LoopClock
from vblk.errors import OptionError, StorageError
from vblk.formats.luks.cipher import HASHES, CipherSpec
from vblk.formats.luks.create import NewHeader, payload_offset, plan_header
from vblk.formats.luks.keys import derive
from vblk.graph.creation import Creator, FileOptions, NewImage, Wish
from vblk.graph.node import Node
from vblk.options import Scalar, Size
from vblk.options.creation import described
from vblk.units import KIB, OFFSET_MAX

SECTOR: Final = 512
ITER_TIME: Final = 2000
_ITERATIONS_TRIED: Final = 1 << 15
_KEY_BITS: Final = {"aes-128": 128, "aes-192": 192, "aes-256": 256}


@dataclass(slots=True)
class LuksOptions:
    """The options of `-o` for LUKS images."""

    size: Size | None = described(None, "Virtual disk size")
    key_secret: str | None = described(
        None, "ID of the secret that provides the keyslot passphrase", name="key-secret"
    )
    cipher_alg: str = described("aes-256", "Name of encryption cipher algorithm", name="cipher-alg")
    cipher_mode: str = described("xts", "Name of encryption cipher mode", name="cipher-mode")
    ivgen_alg: str = described("plain64", "Name of IV generator algorithm", name="ivgen-alg")
    ivgen_hash_alg: str | None = described(None, "Name of IV generator hash algorithm", name="ivgen-hash-alg")
    hash_alg: str = described("sha256", "Name of encryption hash algorithm", name="hash-alg")
    iter_time: int = described(ITER_TIME, "Time to spend in PBKDF in milliseconds", name="iter-time")

    def spec(self) -> CipherSpec:
        """Return the cipher.

        Raises:
            OptionError: There is none of that name, or not here.
        """
        choices = {
            "cipher-alg": (self.cipher_alg, tuple(_KEY_BITS)),
            "cipher-mode": (self.cipher_mode, ("xts", "cbc", "ecb")),
            "ivgen-alg": (self.ivgen_alg, ("plain", "plain64", "essiv")),
            "ivgen-hash-alg": (self.ivgen_hash_alg, (None, *HASHES)),
            "hash-alg": (self.hash_alg, HASHES),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise OptionError(f"Parameter '{name}' does not accept value '{value}'")
        if not 0 < self.iter_time < 1 << 31:
            raise OptionError("PBKDF iteration time must be greater than zero")
        bits = _KEY_BITS[self.cipher_alg]
        if self.cipher_mode == "xts" and bits == 192:
            raise OptionError("XTS mode has no keys of 192 bits")
        is_essiv = self.ivgen_alg == "essiv" and self.cipher_mode != "ecb"
        if is_essiv and self.ivgen_hash_alg not in (None, "sha256"):
            raise OptionError("the hash of essiv has to make a key of 256 bits: sha256")
        return CipherSpec(
            "aes",
            self.cipher_mode,
            "" if self.cipher_mode == "ecb" else self.ivgen_alg,
            (self.ivgen_hash_alg or "sha256") if is_essiv else "",
            bits // 8 * (2 if self.cipher_mode == "xts" else 1),
        )


class NewLuksImage(NewImage):
    """A LUKS image to be made; `size` in bytes."""

    driver: ClassVar[str] = "luks"
    reads_as_zeros: ClassVar[bool] = False

    def __init__(self, size: int, file: FileOptions, new: NewHeader, own: dict[str, Scalar]) -> None:
        self.size = size
        self.file = file
        self.own = own
        self._new = new
        self._preallocation = file.mode()

    def file_length(self, data: int) -> int:
        """Return the header's length and the disk's: all of it has space."""
        return self._new.header.payload_offset + self.size

    async def create(self, leaf: Node, *, durable: bool, unfinished: bool) -> None:
        """Write the key material, and then the header."""
        header, material = self._new
        length = self.file_length(0)
        if leaf.driver == "host_device":
            if leaf.size < length:
                raise StorageError(
                    errno.ENOSPC, "the device is smaller than the image", filename=leaf.filename
                )
            await leaf.write(0, bytes(4 * KIB))
        else:
            if leaf.size:
                await leaf.resize(0)
            await leaf.resize(length, preallocation=self._preallocation)
        await leaf.write(header.slots[0].key_offset, material)
        if durable:
            await leaf.flush()
        await leaf.write(0, header.encode().ljust(4 * KIB, b"\0"))
        if durable:
            await leaf.flush()

    async def finish(self, leaf: Node, *, durable: bool) -> None:
        """Nothing marks a LUKS image."""


class LuksCreator(Creator[LuksOptions]):
    """Makes LUKS images."""

    options = LuksOptions

    async def plan(self, wish: Wish[LuksOptions]) -> NewLuksImage:
        """Check the options, and make the keys."""
        options = wish.options
        if options.key_secret is None:
            raise OptionError("Parameter 'key-secret' is required for cipher")
        spec = options.spec()
        secret = wish.objects.secret(options.key_secret)
        if wish.size > OFFSET_MAX - payload_offset(spec) or wish.size % SECTOR:
            raise OptionError(f"a disk of {wish.size} bytes is too large, or not of whole sectors")
        wish.file.mode()
        clock = LoopClock()
        start = clock.now()
        derive(options.hash_alg, secret, bytes(32), _ITERATIONS_TRIED, spec.key_bytes)
        took = max(clock.now() - start, 1e-6)
        iterations = int(_ITERATIONS_TRIED * options.iter_time / 1000 / took)
        new = plan_header(spec, options.hash_alg, secret, min(iterations, (1 << 26)), os.urandom)
        return NewLuksImage(wish.size, wish.file, new, {"key-secret": options.key_secret})


CREATOR = LuksCreator()
