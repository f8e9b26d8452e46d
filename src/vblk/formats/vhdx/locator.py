"""The parent locator: which file a differencing image builds on.

Owns: parsing the item, and turning its Windows paths into candidate paths here.
It must not open or look for anything: which candidate may be opened is the open
gate's decision, which one is the parent is decided by the linkage.
Ordering rule: relative path, volume path, absolute path, then the bare file name
beside the child, then in the directories that the caller lists.

Source: [MS-VHDX] "Parent Locator", "Parent Locator Header", "Parent Locator Entry".
"""

import enum
import posixpath
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vblk.codec.guid import Guid
from vblk.errors import CorruptImage, Reason, UnsupportedFeature
from vblk.formats.vhdx.layout import LOCATOR_TYPE_VHDX

HEADER_RECORD = struct.Struct("<16sHH")
"""
      0  16  locator type
     16   2  reserved
     18   2  count of pairs
"""

PAIR_RECORD = struct.Struct("<IIHH")
"""
      0   4  key's offset from the item's start
      4   4  value's offset
      8   2  key's length in bytes, UTF-16LE
     10   2  value's length in bytes
"""

KEY_LINKAGE = "parent_linkage"
KEY_LINKAGE_2 = "parent_linkage2"
KEY_RELATIVE = "relative_path"
KEY_VOLUME = "volume_path"
KEY_ABSOLUTE = "absolute_win32_path"
PATH_KEYS = (KEY_RELATIVE, KEY_VOLUME, KEY_ABSOLUTE)

PAIRS_MAX = 256
"""More pairs than this have never had a meaning."""


class ParentLocator(NamedTuple):
    """The item's pairs. For an unknown `locator_type` there are none, and no linkage."""

    locator_type: Guid
    pairs: Mapping[str, str]
    linkage: Guid | None
    linkage2: Guid | None
    file_offset: int
    filename: str | None = None

    @property
    def supported(self) -> bool:
        """Whether this version understands the locator."""
        return self.locator_type == LOCATOR_TYPE_VHDX

    @property
    def paths(self) -> dict[str, str]:
        """The path keys that are present, in the order in which they are tried."""
        return {key: self.pairs[key] for key in PATH_KEYS if key in self.pairs}

    def accepts(self, data_write_guid: Guid) -> bool:
        """Tell whether an image with this data write GUID is the parent."""
        return data_write_guid in (self.linkage, self.linkage2)


def _refuse(message: str, offset: int, filename: str | None = None) -> CorruptImage:
    return CorruptImage(Reason.PARENT_LOCATOR, message, filename=filename, offset=offset)


def parse_locator(data: bytes, file_offset: int, filename: str | None = None) -> ParentLocator:
    """Parse the parent locator item.

    Args:
        data: The whole item.
        file_offset: Where it starts in the file, for messages.
        filename: The image's name, for the messages of `parent_candidates`.

    Raises:
        CorruptImage: A pair lies outside the item or is not text, a key comes
            twice, or the linkage is missing or not a GUID.
    """
    if len(data) < HEADER_RECORD.size:
        raise _refuse(f"the parent locator has {len(data)} bytes; its header takes 20", file_offset)
    raw_type, _, count = HEADER_RECORD.unpack_from(data)
    locator_type = Guid(raw_type)
    if locator_type != LOCATOR_TYPE_VHDX:
        return ParentLocator(locator_type, {}, None, None, file_offset, filename)
    table_end = HEADER_RECORD.size + count * PAIR_RECORD.size
    if count > PAIRS_MAX or table_end > len(data):
        raise _refuse(
            f"the parent locator claims {count} pairs, more than its {len(data)} bytes hold or than "
            f"{PAIRS_MAX}",
            file_offset + 18,
        )
    pairs: dict[str, str] = {}
    for at in range(HEADER_RECORD.size, table_end, PAIR_RECORD.size):
        key_offset, value_offset, key_length, value_length = PAIR_RECORD.unpack_from(data, at)
        key = _text(data, key_offset, key_length, "key", file_offset + at)
        value = _text(data, value_offset, value_length, "value", file_offset + at)
        if key in pairs:
            raise _refuse(f"the parent locator has the key {key!r} twice", file_offset + at)
        pairs[key] = value
    linkage = _linkage(pairs, KEY_LINKAGE, file_offset)
    if linkage is None:
        raise _refuse(f"the parent locator has no {KEY_LINKAGE}", file_offset)
    linkage2 = _linkage(pairs, KEY_LINKAGE_2, file_offset)
    return ParentLocator(locator_type, pairs, linkage, linkage2, file_offset, filename)


def _text(data: bytes, offset: int, length: int, what: str, at: int) -> str:
    if offset == 0 or length == 0 or length % 2 or offset + length > len(data):
        raise _refuse(
            f"a {what} of the parent locator, {length} bytes at {offset}, does not lie inside the item's "
            f"{len(data)} bytes as UTF-16 text",
            at,
        )
    try:
        text = data[offset : offset + length].decode("utf-16-le")
    except UnicodeDecodeError:
        raise _refuse(f"a {what} of the parent locator is not UTF-16 text", at) from None
    if "\0" in text:
        raise _refuse(f"a {what} of the parent locator contains a NUL", at)
    return text


def _linkage(pairs: Mapping[str, str], key: str, file_offset: int) -> Guid | None:
    text = pairs.get(key)
    if text is None:
        return None
    try:
        return Guid.parse(text)
    except ValueError:
        raise _refuse(f"the parent locator's {key} {text!r} is not a GUID", file_offset) from None


class Found(enum.Enum):
    """How a candidate path came about."""

    GIVEN = "named by the user"
    RELATIVE_TO_REAL_DIRECTORY = "relative to the image's own directory"
    RELATIVE_TO_DIRECTORY = "relative to the directory the image was named in"
    MAPPED = "through the path map"
    BESIDE = "by its file name, beside the image"
    SEARCHED = "by its file name, in a search directory"


class Candidate(NamedTuple):
    """One path to try.

    `key` is the locator's key it came from. `root` is the directory that the
    user vouched for: the image's own, a mapped one, a search directory.
    `refusal`, where it is set, says why the path must not be opened by default.
    """

    path: str
    key: str
    found: Found
    root: str
    refusal: str | None = None


def is_absolute_anywhere(path: str) -> bool:
    """Tell whether a path is absolute on Windows or here, or names a drive."""
    return path[:1] in ("/", "\\") or path[1:2] == ":"


def is_inside(path: str, directory: str) -> bool:
    """Tell, by the text alone, whether a path lies in a directory's tree."""
    root = posixpath.normpath(directory)
    return posixpath.normpath(path).startswith("/" if root == "/" else root + "/")


def windows_key(path: str) -> str:
    r"""Bring a Windows path into one form for comparison.

    `\\?\UNC\server\share` becomes `\\server\share`, `\\?\D:\x` becomes `d:\x`,
    slashes become backslashes, letters lower-case.
    """
    return _strip_prefix(path).casefold()


def _strip_prefix(path: str) -> str:
    path = path.replace("/", "\\")
    if path[:8].casefold() == "\\\\?\\unc\\":
        return "\\\\" + path[8:]
    return path[4:] if path[:4] in ("\\\\?\\", "\\??\\") else path


def map_windows_path(path: str, path_map: Mapping[str, str]) -> tuple[str, str] | None:
    r"""Translate an absolute Windows path by the longest prefix in `path_map`.

    Args:
        path: Such as `\\?\D:\disks\base.vhdx`.
        path_map: Windows prefixes to directories here, such as `D:\` to `/mnt/d`.

    Returns: (path here, directory it was mapped into), or None: nothing matches.
    """
    stripped = _strip_prefix(path)
    best: tuple[int, str] | None = None
    for prefix, directory in path_map.items():
        wanted = _strip_prefix(prefix).rstrip("\\")
        reach = len(wanted)
        if (
            reach
            and stripped[:reach].casefold() == wanted.casefold()
            and stripped[reach : reach + 1] == "\\"
            and (best is None or reach > best[0])
        ):
            best = (reach, directory)
    if best is None:
        return None
    rest = stripped[best[0] :].replace("\\", "/").lstrip("/")
    return posixpath.normpath(posixpath.join(best[1], rest)), best[1]


def parent_candidates(
    locator: ParentLocator,
    child_directory: str,
    child_real_directory: str,
    path_map: Mapping[str, str] | None = None,
    search_directories: Sequence[str] = (),
) -> list[Candidate]:
    """List the paths at which the parent may be, best first, none twice.

    Args:
        locator: The child's locator.
        child_directory: Directory of the path by which the child was named.
        child_real_directory: Directory of the child after symbolic links.
        path_map: Windows prefixes to directories here, given by the user.
        search_directories: Where to look for the bare file name, given by the user.

    Raises:
        UnsupportedFeature: The locator is of an unknown type.
        CorruptImage: It names no path at all.
    """
    if not locator.supported:
        raise UnsupportedFeature(
            Reason.PARENT_LOCATOR,
            f"the parent locator has the unknown type {locator.locator_type}",
            filename=locator.filename,
            offset=locator.file_offset,
        )
    if not locator.paths:
        raise _refuse(
            f"the parent locator names no path; it should have one of {', '.join(PATH_KEYS)}",
            locator.file_offset,
            locator.filename,
        )
    found: list[Candidate] = []
    relative = locator.paths.get(KEY_RELATIVE)
    if relative is not None:
        found += _relative_candidates(relative, child_directory, child_real_directory)
    for key in (KEY_VOLUME, KEY_ABSOLUTE):
        path = locator.paths.get(key)
        mapped = None if path is None else map_windows_path(path, path_map or {})
        if mapped is not None:
            found.append(_candidate(mapped[0], key, Found.MAPPED, mapped[1]))
    for how, directories in (
        (Found.BESIDE, (child_real_directory, child_directory)),
        (Found.SEARCHED, tuple(search_directories)),
    ):
        for directory in directories:
            for key, path in locator.paths.items():
                name = path.replace("/", "\\").rpartition("\\")[2]
                if name not in ("", ".", "..") and name[1:2] != ":":
                    found.append(_candidate(posixpath.join(directory, name), key, how, directory))
    unique: dict[str, Candidate] = {}
    for candidate in found:
        unique.setdefault(candidate.path, candidate)
    return list(unique.values())


def _candidate(path: str, key: str, found: Found, root: str) -> Candidate:
    inside = is_inside(path, root)
    return Candidate(path, key, found, root, None if inside else f"it leads out of {root}")


def _relative_candidates(path: str, directory: str, real_directory: str) -> list[Candidate]:
    if is_absolute_anywhere(path):
        refusal = "the relative path of the parent is absolute"
        return [Candidate(path, KEY_RELATIVE, Found.RELATIVE_TO_REAL_DIRECTORY, real_directory, refusal)]
    here = path.replace("\\", "/")
    return [
        _candidate(posixpath.normpath(posixpath.join(root, here)), KEY_RELATIVE, how, root)
        for how, root in (
            (Found.RELATIVE_TO_REAL_DIRECTORY, real_directory),
            (Found.RELATIVE_TO_DIRECTORY, directory),
        )
    ]
