"""Ciphers by their names, against vectors of IEEE 1619 and against themselves."""

import pytest

from vblk.errors import UnsupportedFeature
from vblk.formats.luks.cipher import SECTOR, CipherSpec, SectorCipher, hashed, parse_spec


def test_xts_gives_what_the_standard_says() -> None:
    # IEEE 1619-2007, vector 4: AES-128, data unit 0, 512 bytes that count up.
    key = bytes.fromhex("2718281828459045235360287471352631415926535897932384626433832795")
    cipher = SectorCipher(CipherSpec("aes", "xts", "plain64", "", 32), key)
    encrypted = cipher.encrypt(0, bytes(range(256)) * 2)
    assert encrypted[:16] == bytes.fromhex("27a7479befa1d476489f308cd4cfa6e2")
    assert encrypted[-16:] == bytes.fromhex("0a282df920147beabe421ee5319d0568")


SPECS = [
    ("xts-plain64", 64), ("xts-plain", 32), ("cbc-plain64", 24), ("cbc-essiv:sha256", 32), ("ecb", 16),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "key_bytes"), SPECS)
def test_what_is_encrypted_is_decrypted_also_in_pieces(mode: str, key_bytes: int) -> None:
    spec = parse_spec("aes", mode, key_bytes)
    assert spec.mode_text == mode
    cipher = SectorCipher(spec, bytes(range(key_bytes)))
    plain = bytes(7 * SECTOR)
    encrypted = cipher.encrypt(5, plain)
    assert cipher.decrypt(5, encrypted) == plain
    assert cipher.decrypt(8, encrypted[3 * SECTOR : 4 * SECTOR]) == plain[:SECTOR]
    assert (len({encrypted[at : at + SECTOR] for at in range(0, len(encrypted), SECTOR)}) == 7) is (
        mode != "ecb"
    )


def test_plain_counts_sectors_in_32_bits_and_plain64_in_64() -> None:
    key, far = bytes(range(32)), 1 << 32
    for ivgen, same in (("plain", True), ("plain64", False)):
        cipher = SectorCipher(CipherSpec("aes", "cbc", ivgen, "", 32), key)
        assert (cipher.encrypt(3, bytes(SECTOR)) == cipher.encrypt(far + 3, bytes(SECTOR))) is same


@pytest.mark.parametrize(
    ("cipher", "mode", "key_bytes"),
    [
        ("serpent", "xts-plain64", 64), ("aes", "xts-plain64", 48), ("aes", "ctr-plain64", 32),
        ("aes", "xts-benbi", 64), ("aes", "cbc-essiv:md5", 32), ("aes", "xts-plain64:sha256", 64),
        ("aes", "xts", 64), ("aes", "ecb-plain", 16), ("aes", "", 16),
    ],
)  # fmt: skip
def test_a_cipher_that_is_not_known_is_refused_by_its_name(cipher: str, mode: str, key_bytes: int) -> None:
    with pytest.raises(UnsupportedFeature, match=f"{cipher}-{mode}"):
        parse_spec(cipher, mode, key_bytes)


def test_a_hash_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="whirlpool"):
        hashed("whirlpool", b"")
