"""`--object`: the objects that a command is given.

Owns: the option; `vblk.objects` owns what it means.
"""

import click

from vblk.cli.command import option
from vblk.cli.failure import Failure
from vblk.errors import BlockError
from vblk.graph.objects import Objects


def objects_option() -> click.Option:
    """Declare `--object`."""
    return option(
        "--object",
        "objects",
        metavar="OBJECT",
        multiple=True,
        help="secret,id=ID,data=TEXT or file=FILE[,format=raw|base64]: a passphrase that options refer to; "
        "tls-creds-x509,id=ID,dir=DIR and tls-creds-psk,id=ID,dir=DIR[,username=USER]: TLS for NBD.",
    )


def objects_of(texts: tuple[str, ...]) -> Objects:
    """Return the objects of a command.

    Raises:
        Failure: One of them is none, or is given wrongly.
    """
    objects = Objects()
    if texts:
        from vblk.objects import add_object, read_object_text  # few commands need any

        for text in texts:
            try:
                add_object(objects, read_object_text(text))
            except BlockError as error:
                raise Failure(error.message) from error
    return objects
