"""The parents of a differencing VHDX: found, verified, attached.

Owns: the search through the paths that an image names, the linkage check, and
the loop down the chain. Which paths there are is pure
(`vblk.formats.vhdx.locator`); which may be opened is the gate's to say.

Ordering rule: a candidate is admitted before it is opened, and its identity is
read while its lock is held, so that it cannot change between check and use.
"""

import os
from dataclasses import dataclass

from vblk.drivers.vhdx import Search, VhdxNode
from vblk.errors import (
    CorruptImage,
    Cycle,
    ImageError,
    OpenDenied,
    PermissionConflict,
    Reason,
    StorageError,
    UnsupportedFeature,
    WrongFormat,
)
from vblk.formats.vhdx import Candidate, Found, parent_candidates
from vblk.graph.edge import Role
from vblk.graph.edges import DEPTH_MAX
from vblk.graph.node import Leaf, Node
from vblk.graph.site import ChainRules, Site
from vblk.options import NodeOptions


@dataclass(slots=True)
class _Refusals:
    """Why candidates were not the parent, so that the worst reason can be raised at the end."""

    search: Search
    denied: OpenDenied | None = None
    mismatch: str | None = None

    def note(self, candidate: Candidate, why: str) -> None:
        """Note that a candidate was not the parent."""
        self.search.tried.append((candidate.path, why))

    def failure(self, child: str) -> ImageError:
        """Return the error that says why no parent was found."""
        tried = self.search.tried
        listed = "; ".join(f"'{path}': {why}" for path, why in tried) or "it names no path that can be tried"
        if self.mismatch is not None:
            return CorruptImage(
                Reason.PARENT_MISMATCH,
                f"parent linkage mismatch: {self.mismatch} (tried {listed})",
                filename=child,
            )
        if self.denied is not None:
            return OpenDenied(Reason.POLICY, f"{self.denied.message} (tried {listed})", filename=child)
        return CorruptImage(
            Reason.PARENT_MISSING, f"cannot find the parent image: tried {listed}", filename=child
        )


async def attach_parents(site: Site, top: VhdxNode, rules: ChainRules) -> None:
    """Open the whole chain behind `top` and attach each parent to its child.

    Raises:
        CorruptImage: A parent is missing or is not the one that its child was made from.
        OpenDenied: The gate forbids every file that could be the parent.
        Cycle: An image is its own ancestor, or the chain is deeper than DEPTH_MAX.
    """
    seen = {identity(top)} - {None}
    child = top
    depth = 1
    while child.image.has_parent:
        depth += 1
        if depth > DEPTH_MAX:
            raise Cycle(f"the chain has more than {DEPTH_MAX} images", filename=top.filename)
        try:
            parent = await _find_parent(site, child, rules)
        except PermissionConflict as conflict:
            if identity_of(conflict.filename) in seen:  # the top, open for writing, excludes itself
                raise Cycle(f"'{conflict.filename}' is its own ancestor", filename=child.filename) from None
            raise
        try:
            known = identity(parent)
            if known in seen:
                raise Cycle(f"'{parent.filename}' is its own ancestor", filename=child.filename)
            _check_geometry(child, parent)
            site.graph.attach(child, Role.BACKING, parent)
        except BaseException:
            await site.graph.discard_unused(parent)
            raise
        seen |= {known} - {None}
        child = parent
        rules = rules._replace(parent=None)


def identity(node: Node) -> tuple[int, int] | None:
    """Return device and inode of the file below a node, or None without a file."""
    below: Node | None = node
    while below is not None:
        if isinstance(below, Leaf):
            descriptor = below.descriptor()
            # past the system's cache a file has no descriptor to give, but still a name
            return identity_of(below.filename if descriptor is None else descriptor)
        below = below.below
    return None


def identity_of(file: str | int | None) -> tuple[int, int] | None:
    """Return device and inode of a file, or None if there is none."""
    if file is None:
        return None
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


async def _find_parent(site: Site, child: VhdxNode, rules: ChainRules) -> VhdxNode:
    child.search = Search()
    refusals = _Refusals(child.search)
    for candidate in _candidates(child, rules):
        parent = await _try_candidate(site, child, rules, candidate, refusals)
        if parent is not None:
            child.search.found = candidate
            return parent
    raise refusals.failure(child.filename)


def _candidates(child: VhdxNode, rules: ChainRules) -> list[Candidate]:
    if rules.parent is not None:
        return [Candidate(rules.parent, "", Found.GIVEN, os.path.dirname(rules.parent))]
    locator = child.image.locator
    assert locator is not None, "a differencing image without a locator does not load"
    local = local_path(child)
    return parent_candidates(
        locator,
        os.path.dirname(os.path.abspath(local)),
        os.path.dirname(os.path.realpath(local)),
        dict(rules.path_map),
        rules.parent_dirs,
    )


async def _try_candidate(
    site: Site, child: VhdxNode, rules: ChainRules, candidate: Candidate, refusals: _Refusals
) -> VhdxNode | None:
    """Open a candidate; None, with the reason noted, when it is not the parent."""
    path = candidate.path
    try:
        if rules.parent is None:
            roots = (*rules.parent_dirs, *(local for _, local in rules.path_map))
            path = site.graph.gate.admit(path, named_by=local_path(child), roots=roots)
        parent = await _open_parent(site, path, rules)
    except OpenDenied as denied:
        refusals.denied = refusals.denied or denied
        refusals.note(candidate, "refused by policy")
        return None
    except FileNotFoundError:
        refusals.note(candidate, "no such file")
        return None
    except PermissionConflict:
        raise
    except (WrongFormat, StorageError) as error:
        refusals.note(candidate, error.message)
        return None
    mismatch = _linkage_mismatch(child, parent)
    if mismatch is None or rules.ignore_linkage:
        if mismatch is not None:
            child.warnings.append(f"{mismatch}, accepted because linkage is ignored")
        return parent
    await site.graph.discard_unused(parent)
    refusals.mismatch = refusals.mismatch or mismatch
    refusals.note(candidate, "linkage mismatch")
    return None


async def _open_parent(site: Site, path: str, rules: ChainRules) -> VhdxNode:
    options = NodeOptions(
        driver="vhdx", children={"file": NodeOptions(driver="file", own={"filename": path}), "backing": None}
    )
    request = site.request._replace(read_only=True, backing=False, rules=rules._replace(parent=None))
    node = await site.open(options, request)
    assert isinstance(node, VhdxNode)
    return node


def _linkage_mismatch(child: VhdxNode, parent: VhdxNode) -> str | None:
    """Say how the parent's identity differs from what the child was made from."""
    locator = child.image.locator
    if locator is None:
        return f"'{child.filename}' does not say which parent it was made from"
    actual = parent.image.data_write_guid
    if locator.accepts(actual):
        return None
    wanted = " or ".join(
        str(linkage) for linkage in (locator.linkage, locator.linkage2) if linkage is not None
    )
    return f"'{parent.filename}' has the identity {actual}, the child wants {wanted or 'none'}"


def _check_geometry(child: VhdxNode, parent: VhdxNode) -> None:
    if child.image.logical_sector_size != parent.image.logical_sector_size:
        raise UnsupportedFeature(
            Reason.BAD_VALUE,
            f"sectors of {child.image.logical_sector_size} bytes over a parent with sectors of "
            f"{parent.image.logical_sector_size} bytes ('{parent.filename}')",
            filename=child.filename,
        )


def local_path(node: Node) -> str:
    """Return the path of the local file below a node."""
    below = node
    while (next_below := below.below) is not None:
        below = next_below
    return below.filename
