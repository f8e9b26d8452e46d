"""Merging an image into one of its ancestors: the data of all layers between goes down once.

Owns: the order in which a chain is changed, what a rerun makes of a merge that
was killed, and which files are deleted. How data descends is `vblk.jobs.chain`'s.

Ordering rules, each step durable before the next; T is the top's identity (data
write GUID), G a new one:
1. The target's child accepts G beside the target's own identity.
2. The target becomes G; the layers' data, the top's size and the items that
   describe its disk go into it. Until here the chain reads as before.
3. The top's locator names the target itself, accepts G and T, and notes which
   images are superfluous: the top reads the same with and without them.
4. The target becomes T: children of the top accept it in place of the top, and
   the images between do not any more.
5. Children of the top that are found are led to the target.
6. The images between are deleted, then the top.
A crash before 3 is durable: all is done again. After it the note says, as long as
the top still is T, that only 4 to 6 are left.

Source: [MS-VHDX] "Parent Locator", "Headers".
"""

from typing import NamedTuple

from vblk.codec.guid import ZERO_GUID, Guid
from vblk.drivers.vhdx_links import keep_identity, set_locator
from vblk.errors import GraphError, ImageError, Unsupported
from vblk.formats.vhdx.encode import encode_locator
from vblk.formats.vhdx.linkage import Absorbed, MergeNote, merge_note, reparented, settled
from vblk.jobs.chain import (
    Descent,
    Images,
    Member,
    amount_of,
    announce,
    index_of,
    members_of,
    refuse_strangers,
    strangers_among,
    vhdx_of,
)
from vblk.jobs.progress import Progress


class MergePlan(NamedTuple):
    """What a merge will do, or has left to do.

    `between` are the images between top and target, `data` counts the bytes to
    copy, None when all are copied. `strangers` are images that stand on the
    target or on an image between and are none of the chain: they would be lost.
    `children` are images that stand on the top.
    """

    top: Member
    between: tuple[Member, ...]
    target: Member
    data: int | None
    strangers: tuple[str, ...]
    children: tuple[str, ...]


class Merge:
    """One merge of `top` into its ancestor `into`; None: its parent.

    Args:
        images: How they are reached.
        top: The image whose disk the target will hold.
        into: The target's name.
        keep: Leave the top and the images between where they are.
        force: Go on although other images stand on what changes.
        progress: Told of the data bytes.
        rate: Bytes a second at most.
        verify: Compare what was copied before anything is led elsewhere or deleted.
    """

    def __init__(
        self,
        images: Images,
        top: str,
        into: str | None = None,
        *,
        keep: bool = False,
        force: bool = False,
        progress: Progress | None = None,
        rate: int | None = None,
        verify: bool = False,
    ) -> None:
        self._images = images
        self._top = top
        self._into = into
        self._keep = keep
        self._force = force
        self._progress = progress
        self._rate = rate
        self._verify = verify
        self.left: list[str] = []
        """Files that should have been deleted and could not be found to be what was merged."""

    async def plan(self) -> MergePlan:
        """Look at the chain and say what is to be done.

        Raises:
            ImageError: The chain is damaged, or a parent is not to be found.
            OptionError: The top has no parent, or `into` is none of its ancestors.
            Unsupported: An image is not VHDX.
        """
        members = await members_of(self._images, self._top)
        index = index_of(self._images, members, self._into)
        for member in members[: index + 1]:
            if member.format != "vhdx":
                raise Unsupported(f"only VHDX images are merged, not {member.format}", filename=member.name)
        note = _note_of(members[0])
        top, between, target = members[0], tuple(members[1:index]), members[index]
        children = await strangers_among(self._images, members, (top,))
        if note is not None and note.identity == top.identity and index == 1:
            return MergePlan(top, (), target, None, (), children)
        absorbed = {self._images.named_by(top.name, path) for path, _ in _absorbed_by(top)}
        found = await strangers_among(self._images, members, (*between, target))
        strangers = tuple(name for name in found if name not in absorbed)
        data = await amount_of(self._images, (top, *between))
        return MergePlan(top, between, target, data, strangers, children)

    async def run(self, plan: MergePlan) -> None:
        """Merge.

        Raises:
            GraphError: Other images stand on what would change; nothing was changed.
            StorageError: A file failed; the chain reads as before, and the merge can be run again.
        """
        if not self._force:
            refuse_strangers(plan.strangers, self._top)
        if plan.data is not None:
            await self._descend(plan)
        await self._let_target_replace_top(plan)
        if self._keep:
            await self._settle_top(plan)
            return
        for child in plan.children:
            await self._lead(child, plan)
        await self._delete(plan)

    async def _descend(self, plan: MergePlan) -> None:
        layers = (plan.top, *plan.between)
        encode_locator(self._top_pairs(plan, ZERO_GUID))  # what is not possible is refused before all
        async with self._images.opened(self._top, read_only=False):
            pass  # and so is a top that somebody uses
        coming = await announce(self._images, layers[-1], plan.target)
        await Descent(
            self._images,
            layers,
            plan.target,
            coming,
            exact=True,
            progress=self._progress,
            rate=self._rate,
            verify=self._verify,
        ).run()
        await self._lead_top(plan, coming)

    async def _lead_top(self, plan: MergePlan, coming: Guid) -> None:
        """Let the top stand on the target itself, which holds all of its disk."""
        async with self._images.opened(self._top, read_only=False) as handle:
            node = vhdx_of(handle)
            if keep_identity(node) != plan.top.identity:
                raise GraphError("somebody wrote to the image meanwhile: merge again", filename=self._top)
            await set_locator(node, self._top_pairs(plan, coming))

    def _top_pairs(self, plan: MergePlan, parent: Guid) -> dict[str, str]:
        assert plan.top.identity is not None
        note = None
        if not self._keep:
            absorbed = _absorbed_by(plan.top) + tuple(
                Absorbed(self._images.path_between(self._top, member.name), member.identity)
                for member in plan.between
                if member.identity is not None
            )
            note = MergeNote(plan.top.identity, absorbed)
        path = self._images.path_between(self._top, plan.target.name)
        return reparented(parent, path, coming=plan.top.identity, note=note)

    async def _let_target_replace_top(self, plan: MergePlan) -> None:
        assert plan.top.identity is not None
        async with self._images.opened(plan.target.name, read_only=False, backing=True) as handle:
            node = vhdx_of(handle)  # opening it has brought its log home, if a crash left one
            if node.image.data_write_guid != plan.top.identity:
                node.writer.become(plan.top.identity)
                await node.writer.begin()

    async def _settle_top(self, plan: MergePlan) -> None:
        """Let a top that is kept have one linkage, as everybody else's images do."""
        assert plan.top.identity is not None
        async with self._images.opened(self._top, read_only=False) as handle:
            node = vhdx_of(handle)
            keep_identity(node)
            assert node.image.locator is not None
            await set_locator(node, settled(node.image.locator, plan.top.identity))

    async def _lead(self, child: str, plan: MergePlan) -> None:
        """Let a child of the top name the target, which has the top's identity."""
        assert plan.top.identity is not None
        async with self._images.opened(child, read_only=False) as handle:
            node = vhdx_of(handle)
            keep_identity(node)
            path = self._images.path_between(child, plan.target.name)
            await set_locator(node, reparented(plan.top.identity, path))

    async def _delete(self, plan: MergePlan) -> None:
        alive = [member.name for member in await members_of(self._images, plan.target.name)]
        found = [member.name for member in plan.between]
        for path, identity in _absorbed_by(plan.top):
            try:
                name = self._images.named_by(self._top, path)
                if name is None or name in found:
                    continue
                async with self._images.opened(name) as handle:
                    same = vhdx_of(handle).image.data_write_guid == identity
                    if same and not any(self._images.is_same(name, each) for each in alive):
                        found.append(name)
                    else:
                        self.left.append(name)
            except ImageError:
                self.left.append(path)
        await self._images.remove(found)
        await self._images.remove([self._top])


def _absorbed_by(top: Member) -> tuple[Absorbed, ...]:
    """Return the images that earlier merges made superfluous, and did not come to delete."""
    note = _note_of(top)
    return () if note is None else note.absorbed


def _note_of(member: Member) -> MergeNote | None:
    return None if member.locator is None else merge_note(member.locator.pairs)
