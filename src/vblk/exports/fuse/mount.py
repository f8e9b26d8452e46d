"""Mounting and unmounting of FUSE file systems.

Owns: the system's calls for root, and the setuid helper `fusermount3` for everybody
else. All of it may wait for whoever serves the file system, so it is never called
on the loop that does.

Source: mount(2), umount2(2), fuse(4), fusermount3(1).
"""

import errno
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from functools import cache
from typing import Any, Final

from vblk.errors import StorageError, Unsupported

DEVICE: Final = "/dev/fuse"
HELPER: Final = "fusermount3"

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2


@cache
def _library() -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
    library.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
    return library


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library; raise OSError as its errno says."""
    import ctypes

    if getattr(_library(), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(
    target: str, source: str, mode: int, *, read_only: bool, allow_other: bool, payload_max: int, helper: bool
) -> int:
    """Mount a file system at `target`; return the descriptor over which the kernel asks.

    Args:
        target: An existing folder or file, as `mode` says.
        source: What the table of mounts shows.
        mode: The kind of file that is mounted.
        read_only: The kernel refuses writes itself.
        allow_other: Other users than this one may come.
        payload_max: The most bytes of one read.
        helper: Mount through `fusermount3`, which needs no privilege.

    Raises:
        StorageError: The system refuses.
        Unsupported: There is no FUSE, or no helper.
    """
    options = [f"max_read={payload_max}", "default_permissions"] + ["allow_other"] * allow_other
    try:
        if helper:
            return _mount_by_helper(target, source, [*options, "ro"] if read_only else options)
        return _mount(target, source, mode, options, read_only=read_only)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) and not os.path.exists(DEVICE):
            raise Unsupported(f"this system has no FUSE: {DEVICE} is missing") from error
        raise StorageError(
            error.errno or errno.EIO,
            f"Failed to mount FUSE session to export at '{target}': {error.strerror}",
        ) from error


def _mount(target: str, source: str, mode: int, options: list[str], *, read_only: bool) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        told = [
            f"fd={fd}",
            f"rootmode={mode:o}",
            f"user_id={os.getuid()}",
            f"group_id={os.getgid()}",
            *options,
        ]
        flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
        _call("mount", os.fsencode(source), os.fsencode(target), b"fuse.vblk", flags, ",".join(told).encode())
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mount_by_helper(target: str, source: str, options: list[str]) -> int:
    program = shutil.which(HELPER)
    if program is None:
        raise Unsupported(
            f"mounting without being root needs {HELPER}, which is not installed (package fuse3)"
        )
    name = source.replace("\\", r"\\").replace(",", r"\,")
    words = ",".join((f"fsname={name}", "subtype=vblk", "nosuid", "nodev", *options))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = subprocess.run(
                [program, "-o", words, "--", target],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip().removeprefix(f"{HELPER}: ")
            raise StorageError(errno.EPERM, f"Failed to mount FUSE session to export at '{target}': {text}")
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise StorageError(errno.EIO, f"{HELPER} has mounted '{target}' and handed over no descriptor")
    os.set_blocking(fds[0], False)
    return fds[0]


def unmount(target: str, *, helper: bool, lazily: bool = False) -> bool:
    """Unmount what was mounted; return False if it is in use, unless `lazily`.

    With `lazily` it is gone from the tree at once, and for those who use it when they end.
    """
    if helper:
        words = [HELPER, "-u", *(["-z"] if lazily else []), "--", target]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    try:
        _call("umount2", os.fsencode(target), _MNT_DETACH if lazily else 0)
    except OSError as error:
        return error.errno != errno.EBUSY  # or it is not mounted any more
    return True


def unmount_in_any_case(target: str, *, helper: bool) -> bool:
    """Unmount, lazily where it is in use; return whether it was."""
    if unmount(target, helper=helper):
        return False
    with suppress(OSError):
        unmount(target, helper=helper, lazily=True)
    return True
