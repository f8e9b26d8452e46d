"""What is said when a connection cannot be made.

Owns: the error number and the sentence, in QEMU's words. It connects nothing.
"""

import errno
import os
import re
import socket

from vblk.errors import StorageError


def not_connected(address: object, error: OSError | ValueError) -> StorageError:
    """Return the error for a server at `address` that could not be reached."""
    if isinstance(error, socket.gaierror):
        return StorageError(errno.EINVAL, f"address resolution failed for {address}: {error.strerror}")
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    if number is None:  # several addresses were tried, and each said why
        tried = re.findall(r"\[Errno (\d+)\]", str(error))
        number = (
            int(tried[-1]) if tried else errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EINVAL
        )
        text = os.strerror(number) if tried or isinstance(error, TimeoutError) else str(error)
    else:
        text = os.strerror(number) if isinstance(error, OSError) else str(error)
    return StorageError(number, f"Failed to connect to '{address}': {text}")
