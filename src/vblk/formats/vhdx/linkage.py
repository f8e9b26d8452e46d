"""The links of a chain while it changes: what a child's locator says at which step.

Owns: the pairs of a locator that is rewritten, and the note of a merge that is
done but for its cleaning up. Which step comes when is `vblk.jobs.merge`'s.

The note is a pair that only vblk knows, in the locator of an image that is about
to be deleted: the identity that the image had when all of it was in its new
parent, and the images that stood between them. It counts only as long as the
image still has that identity.

Source: [MS-VHDX] "Parent Locator", "Parent Locator Entry".
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from vblk.codec.guid import Guid
from vblk.formats.vhdx.locator import KEY_LINKAGE, KEY_LINKAGE_2, KEY_RELATIVE, ParentLocator

KEY_MERGED = "vblk_merged"


class Absorbed(NamedTuple):
    """An image that a merge made superfluous: its path from the top's folder, and its data write GUID."""

    path: str
    identity: Guid


class MergeNote(NamedTuple):
    """What is left to do of a merge: `identity` is that of the image which bears the note."""

    identity: Guid
    absorbed: tuple[Absorbed, ...]


def announced(locator: ParentLocator, present: Guid, coming: Guid) -> dict[str, str]:
    """Return the pairs of a child whose parent is about to change its identity."""
    return {**locator.pairs, KEY_LINKAGE: str(present), KEY_LINKAGE_2: str(coming)}


def settled(locator: ParentLocator, parent: Guid) -> dict[str, str]:
    """Return the pairs of a child whose parent has the identity `parent`, and no other coming."""
    pairs = {**locator.pairs, KEY_LINKAGE: str(parent)}
    pairs.pop(KEY_LINKAGE_2, None)
    pairs.pop(KEY_MERGED, None)
    return pairs


def reparented(
    parent: Guid, path: str, *, coming: Guid | None = None, note: MergeNote | None = None
) -> dict[str, str]:
    """Return the pairs of a child that is given another parent, at a path as `relative_path` has it."""
    pairs = {KEY_LINKAGE: str(parent)}
    if coming is not None:
        pairs[KEY_LINKAGE_2] = str(coming)
    pairs[KEY_RELATIVE] = path
    if note is not None:
        files = [[absorbed.path, str(absorbed.identity)] for absorbed in note.absorbed]
        pairs[KEY_MERGED] = json.dumps({"identity": str(note.identity), "files": files})
    return pairs


def merge_note(pairs: Mapping[str, str]) -> MergeNote | None:
    """Read the note of a merge; None where there is none, or none that makes sense."""
    text = pairs.get(KEY_MERGED)
    if text is None:
        return None
    try:
        said = cast("dict[str, Any]", json.loads(text))
        files = cast("Sequence[Sequence[Any]]", said["files"])
        return MergeNote(
            Guid.parse(str(said["identity"])),
            tuple(Absorbed(str(path), Guid.parse(str(identity))) for path, identity in files),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
