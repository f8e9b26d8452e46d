"""`--object`: the objects that a command is given, of which this version knows secrets.

Owns: QEMU's words for those that make no sense, and the reading of a secret's
file. A secret is never part of a message.
"""

import base64
import binascii
import os
from typing import Final

import click

from vblk.cli.command import option
from vblk.cli.failure import Failure
from vblk.errors import OptionError
from vblk.graph.secrets import Secrets
from vblk.options.keyval import split_pairs

SECRET_MAX: Final = 8 << 20
"""The longest secret, in bytes, as cryptsetup has it for key files."""

_KNOWN: Final = ("qom-type", "id", "data", "file", "format")


def objects_option() -> click.Option:
    """Declare `--object`."""
    return option(
        "--object",
        "objects",
        metavar="OBJECT",
        multiple=True,
        help="secret,id=ID,data=TEXT or file=FILE[,format=raw|base64]: a passphrase that options refer to.",
    )


def secrets_of(texts: tuple[str, ...]) -> Secrets:
    """Return the secrets that the objects of a command are.

    Raises:
        Failure: One of them is none, or is given wrongly.
    """
    secrets = Secrets()
    for text in texts:
        try:
            values = {pair.name: pair.value for pair in split_pairs(text, implied="qom-type")}
            name, secret = _secret(values)
            secrets.add(name, secret)
        except OptionError as error:
            raise Failure(error.message) from error
    return secrets


def _secret(values: dict[str, str]) -> tuple[str, bytes]:
    kind = values.get("qom-type", "")
    if kind != "secret":
        raise Failure(f"--object {kind}: this version knows no objects but secrets")
    for name in values:
        if name in ("keyid", "iv"):
            raise Failure(f"--object secret: '{name}' is not supported: secrets are not encrypted here")
        if name not in _KNOWN:
            raise Failure(f"Invalid parameter '{name}'")
    if "id" not in values:
        raise Failure("Parameter 'id' is missing")
    if "data" in values and "file" in values:
        raise Failure("'file' and 'data' are mutually exclusive")
    if "data" not in values and "file" not in values:
        raise Failure("Either 'file' or 'data' must be provided")
    form = values.get("format", "raw")
    if form not in ("raw", "base64"):
        raise Failure(f"Parameter 'format' does not accept value '{form}'")
    data = os.fsencode(values["data"]) if "data" in values else _file_of(values["file"])
    if form == "base64":
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except binascii.Error:
            raise Failure("Base64 data contains invalid characters") from None
    return values["id"], data


def _file_of(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(SECRET_MAX + 1)
    except OSError as error:
        raise Failure(f"Unable to read {path}: {error.strerror}") from error
    if len(data) > SECRET_MAX:
        raise Failure(f"Unable to read {path}: a secret has at most {SECRET_MAX} bytes")
    return data
