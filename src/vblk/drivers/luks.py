"""Encrypted images of the LUKS format as nodes.

Owns: the way of a request through the cipher: whole sectors, encrypted on their
way down and decrypted on their way up, large ones on a worker. The format is
`vblk.formats.luks`.

Ordering rule: a sector is encrypted as a whole, so writes of parts read, change
and write it, under a lock. The header is never written. What grows is written
as zeros: an unwritten sector would decrypt to noise.

Without a `key-secret` the image opens locked: its facts can be told, its bytes
not.
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from vblk.aio.engine import Engine
from vblk.errors import ImageError, OutOfRange, RequestError, StorageError, Unsupported
from vblk.extent import Kind
from vblk.formats.luks import (
    HEADER_LENGTH,
    SECTOR,
    Header,
    SectorCipher,
    material_length,
    parse_header,
    unlock,
)
from vblk.graph.alignment import Aligner
from vblk.graph.edge import Edge
from vblk.graph.node import Buffer, Node, Opaque, Preallocation, Span
from vblk.graph.site import Site
from vblk.options import bind, check_children
from vblk.units import KIB, MIB, OFFSET_MAX, align_down

INLINE_MAX: Final = 16 * KIB
"""The most bytes that are encrypted on the loop's own thread."""

_PIECE: Final = MIB


@dataclass(slots=True)
class Options:
    """`key_secret` is the id of the secret that unlocks the image."""

    key_secret: str | None = None


class Locked(RequestError):
    """The image was opened without its passphrase."""

    default_errno = errno.EACCES


class LuksNode(Opaque):
    """A LUKS image: guest offsets are payload offsets, and no byte is as it is stored.

    Concurrency: belongs to one event loop's thread, with any number of requests
    in flight; overlapping writes in flight leave either's sectors.
    """

    driver: ClassVar[str] = "luks"
    encodes: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        filename: str,
        *,
        read_only: bool,
        file: Node,
        header: Header,
        cipher: SectorCipher | None,
        engine: Engine,
    ) -> None:
        """Stand over `file`; without a `cipher` the image is locked."""
        super().__init__(name, filename, read_only=read_only)
        self.header = header
        self.alignment = SECTOR
        self._file = file
        self._cipher = cipher
        self._engine = engine
        self._aligner = Aligner(self, SECTOR)
        self._closed = False

    def child_changed(self, edge: Edge) -> None:
        """Follow to another file."""
        self._file = edge.node

    @property
    def size(self) -> int:
        """The payload's length in bytes, whole sectors."""
        return align_down(max(0, self._file.size - self.header.payload_offset), SECTOR)

    def _unlocked(self) -> SectorCipher:
        if self._cipher is None:
            raise Locked("Parameter 'key-secret' is required for cipher", filename=self.filename)
        return self._cipher

    async def _transformed(self, transform: Callable[[], bytes], length: int) -> bytes:
        return transform() if length <= INLINE_MAX else await self._engine.run(transform)

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Decrypt a few whole sectors that are in memory, or return None."""
        if length > INLINE_MAX or self._cipher is None or not self._aligner.is_aligned(offset, length):
            return None
        data = self._file.try_read(self.header.payload_offset + offset, length)
        return None if data is None else self._cipher.decrypt(offset // SECTOR, data)

    async def read(self, offset: int, length: int) -> bytes:
        """Read and decrypt; see `Node.read`."""
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with decrypted bytes; see `Node.read_into`."""
        self._unlocked()
        await self._aligner.read_into(offset, buffer)

    async def read_aligned(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from whole sectors."""
        cipher = self._unlocked()
        for at in range(0, len(buffer), _PIECE):
            piece = buffer[at : at + _PIECE]
            data = await self._file.read(self.header.payload_offset + offset + at, len(piece))
            first = (offset + at) // SECTOR
            piece[:] = await self._transformed(partial(cipher.decrypt, first, data), len(piece))

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Encrypt and write; see `Node.write`."""
        self.require_writable()
        self._unlocked()
        await self._aligner.write(offset, data)
        if fua:
            await self.flush()

    async def write_aligned(self, offset: int, data: memoryview) -> None:
        """Write whole sectors."""
        cipher = self._unlocked()
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            first = (offset + at) // SECTOR
            stored = await self._transformed(partial(cipher.encrypt, first, piece), len(piece))
            await self._file.write(self.header.payload_offset + offset + at, stored)

    async def trim(self, size: int) -> None:
        """Nothing was added by padding: the payload is whole sectors long."""

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write encrypted zeros: storage that reads as zeros would decrypt to noise."""
        self.require_writable()
        self._unlocked()
        if no_fallback:
            raise Unsupported("encrypted zeros have to be written out", filename=self.filename)
        zeros = memoryview(bytes(min(length, _PIECE)))
        for at in range(0, length, _PIECE):
            await self._aligner.write(offset + at, zeros[: length - at])
        if fua:
            await self.flush()

    async def discard(self, offset: int, length: int) -> None:
        """Keep the range as it is: which sectors are unused is nobody's business."""
        self.require_writable()

    async def flush(self) -> None:
        """Bring every finished write to stable storage."""
        await self._file.flush()

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Answer data: what is encrypted has no holes."""
        return [Span(Kind.DATA, offset, length, self, offset)]

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the file's length, and write zeros to what is new."""
        self.require_writable()
        self._unlocked()
        if not 0 <= size <= OFFSET_MAX - self.header.payload_offset:
            raise OutOfRange(f"a disk cannot be {size} bytes long", filename=self.filename)
        before = self.size
        await self._file.resize(self.header.payload_offset + size, preallocation=preallocation, exact=exact)
        if self.size > before:
            await self.write_zeroes(before, self.size - before)

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access; the file follows by itself."""
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Return the header's facts under QEMU's names."""
        spec = self.header.spec
        slots: list[dict[str, Any]] = []
        for slot in self.header.slots:
            used = {"iters": slot.iterations} if slot.active else {}
            slots.append({"active": slot.active, **used, "key-offset": slot.key_offset})
            if slot.active:
                slots[-1]["stripes"] = slot.stripes
        return {
            "ivgen-alg": spec.ivgen or "plain64",
            "hash-alg": self.header.hash,
            "cipher-alg": f"{spec.cipher}-{spec.key_bits}",
            "uuid": self.header.uuid,
            **({"ivgen-hash-alg": spec.ivgen_hash} if spec.ivgen_hash else {}),
            "cipher-mode": spec.mode,
            "slots": slots,
            "payload-offset": self.header.payload_offset,
            "master-key-iters": self.header.digest_iterations,
        }

    async def close(self) -> None:
        """Flush what was written, and forget the key. Idempotent."""
        if not self._closed:
            self._closed = True
            self._cipher = None
            if not self.read_only:
                await self._file.flush()


async def open_node(site: Site) -> LuksNode:
    """Open a LUKS image as the site's options say.

    Raises:
        OptionError: There is no such secret.
        ImageError: The header is not one, damaged, or of a kind that is not known here.
        StorageError: The passphrase unlocks nothing.
    """
    options = bind(site.options.own, Options, "luks")
    check_children(site.options, "luks", "file")
    secret = None if options.key_secret is None else site.graph.objects.secret(options.key_secret)
    file = await site.child()
    try:
        header = parse_header(await file.read(0, min(HEADER_LENGTH, file.size)), file.size)
    except ImageError as error:
        error.filename = error.filename or site.filename
        raise
    cipher = None if secret is None else await _unlocked_by(secret, header, file, site)
    node = LuksNode(
        site.name,
        site.filename,
        read_only=site.read_only,
        file=file,
        header=header,
        cipher=cipher,
        engine=site.graph.engine,
    )
    await site.take(node, file)
    return node


async def _unlocked_by(secret: bytes, header: Header, file: Node, site: Site) -> SectorCipher:
    """Try a passphrase on one slot after the other."""
    for slot in header.slots:
        if slot.active:
            material = await file.read(slot.key_offset, material_length(header.spec.key_bytes))
            key = await site.graph.engine.run(partial(unlock, header, slot, material, secret))
            if key is not None:
                return SectorCipher(header.spec, key)
    raise StorageError(errno.EPERM, "Invalid password, cannot unlock any keyslot")
