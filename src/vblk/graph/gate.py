"""The open gate: which files that an image names may be opened.

Owns: the policy for implicit opens (backing files, parents, data files). A file
that a user names does not pass here. It opens nothing itself; it looks at paths
and at what kind of file stands there.

Ordering rule: the gate answers before the file is opened. A refused file is
never touched.
"""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress

from vblk.errors import OpenDenied, Reason


class OpenGate(ABC):
    """A policy for files that images name."""

    @abstractmethod
    def admit(self, path: str, *, named_by: str, roots: Sequence[str] = ()) -> str:
        """Return the path to open, as resolved, or refuse.

        Args:
            path: A local path, relative to the working directory or absolute.
            named_by: The image that names it.
            roots: Folders that the user listed for this image.

        Raises:
            OpenDenied: The policy forbids this file. Nothing was opened.
            FileNotFoundError: Nothing stands there.
        """

    def admit_export(self, name: str, *, named_by: str) -> None:
        """Let an image name what is no path, or refuse.

        Raises:
            OpenDenied: The policy forbids it, as it does unless a gate says otherwise.
        """
        raise OpenDenied(
            Reason.POLICY,
            f"the image names '{name}', and images may only name files: open it with the backing file "
            "named by options",
            filename=named_by,
        )


class DenyGate(OpenGate):
    """Refuses everything: for images from people one does not trust."""

    def admit(self, path: str, *, named_by: str, roots: Sequence[str] = ()) -> str:
        """Refuse."""
        raise OpenDenied(
            Reason.POLICY,
            f"the image names '{path}', and opening what images name is denied",
            filename=named_by,
        )


class BesideGate(OpenGate):
    """Admits regular files and block devices beside the image that names them.

    "Beside" is the folder of the image and what lies below it, after symbolic
    links, and below the folders that the user listed.
    """

    def __init__(self, *, exports: bool = False) -> None:
        """With `exports` admit some of what is no path too, as QEMU does.

        These are exports of NBD servers behind unix sockets, files on SSH servers whose
        keys the user has accepted (a name without parameters cannot say otherwise), and
        files behind `blkdebug` that would be admitted themselves, as would its rules.
        """
        self._exports = exports

    def admit(self, path: str, *, named_by: str, roots: Sequence[str] = ()) -> str:
        """Admit a file in or below the image's folder or a listed one."""
        if "\0" in path:
            raise OpenDenied(Reason.POLICY, "the image names a path with a NUL in it", filename=named_by)
        try:
            resolved = os.path.realpath(path, strict=True)
            mode = os.stat(resolved).st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            self._refuse_outside(os.path.realpath(path), path, named_by, roots)
            raise FileNotFoundError(error.errno, error.strerror, path) from error
        except (OSError, ValueError) as error:  # ValueError: letters that no file name has
            why = error.strerror if isinstance(error, OSError) else "it is no file name"
            raise OpenDenied(
                Reason.POLICY,
                f"the image names {path!r}, which cannot be resolved: {why}",
                filename=named_by,
            ) from error
        self._refuse_outside(resolved, path, named_by, roots)
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OpenDenied(
                Reason.POLICY,
                f"the image names '{path}', which is neither a regular file nor a block device",
                filename=named_by,
            )
        return resolved

    def admit_export(self, name: str, *, named_by: str) -> None:
        """Admit exports behind sockets of this host, and files on known servers, if that was asked for."""
        driver, _, behind = name.partition(":")
        if self._exports and driver == "blkdebug":
            rules, _, path = behind.partition(":")
            for each in filter(None, (rules, path)):
                with suppress(FileNotFoundError):  # opening it will say so
                    self.admit(each, named_by=named_by)
            return
        is_on_known_server = name.startswith("ssh://") and "?" not in name
        if not (self._exports and (is_on_known_server or name.startswith("nbd+unix:"))):
            super().admit_export(name, named_by=named_by)

    def _refuse_outside(self, resolved: str, path: str, named_by: str, roots: Sequence[str]) -> None:
        own = os.path.dirname(os.path.realpath(named_by))
        given = os.path.dirname(os.path.abspath(named_by))
        for root in (own, os.path.realpath(given), *map(os.path.realpath, roots)):
            if resolved.startswith(root.rstrip("/") + "/"):
                return
        raise OpenDenied(
            Reason.POLICY,
            f"the image names '{path}', which lies outside its folder and the folders that were listed",
            filename=named_by,
        )


def gate_of(program: str) -> OpenGate:
    """Return the gate of a program: QEMU's, which a drop-in stands for, let images name exports too."""
    return BesideGate(exports=program.startswith("qemu-"))
