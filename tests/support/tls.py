"""Certificates and keys for the tests: an authority, a server and a client in one folder, by QEMU's names."""

import datetime
import functools
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PSK = "0011223344556677889900112233445566778899001122334455667788990011"
HOST = "disks.example"
_NOW = datetime.datetime.now(datetime.UTC)
_DAY = datetime.timedelta(days=1)


@functools.cache
def _key(of: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(of: str, authority: str, *, days: int = 1) -> bytes:
    is_authority = of == authority
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(of))
        .issuer_name(_name(authority))
        .public_key(_key(of).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW - 9 * _DAY)
        .not_valid_after(_NOW + days * _DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if not is_authority:
        names = [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(_key(authority), hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem(of: str, password: bytes | None) -> bytes:
    return _key(of).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )


def make_credentials(
    folder: Path,
    *,
    authority: str = "authority",
    client: bool = True,
    days: int = 1,
    password: bytes | None = None,
) -> Path:
    """Fill a folder with what both ends need; `days` from now the server's certificate expires."""
    folder.mkdir(exist_ok=True)
    (folder / "ca-cert.pem").write_bytes(_certificate(authority, authority))
    for end in ("server", "client") if client else ("server",):
        (folder / f"{end}-cert.pem").write_bytes(_certificate(end, authority, days=days))
        (folder / f"{end}-key.pem").write_bytes(_pem(end, password))
    return folder


def make_keys(folder: Path, *users: str) -> Path:
    """Fill a folder with one key, the same for all users."""
    folder.mkdir(exist_ok=True)
    (folder / "keys.psk").write_text("".join(f"{user}:{PSK}\n" for user in users))
    return folder
