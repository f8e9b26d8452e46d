"""LUKS version 1: a disk encrypted under a key that passphrases unlock.

Owns: the header, the key slots, the ciphers of sectors and the making of new
headers. It does no I/O: whoever uses it reads and writes the bytes.

Source: "LUKS On-Disk Format Specification", version 1.2.3.
"""

from vblk.formats.luks.cipher import SECTOR, CipherSpec, SectorCipher
from vblk.formats.luks.create import NewHeader, plan_header
from vblk.formats.luks.header import HEADER_LENGTH, Header, KeySlot, parse_header
from vblk.formats.luks.keys import material_length, unlock

__all__ = [
    "HEADER_LENGTH",
    "SECTOR",
    "CipherSpec",
    "Header",
    "KeySlot",
    "NewHeader",
    "SectorCipher",
    "material_length",
    "parse_header",
    "plan_header",
    "unlock",
]
