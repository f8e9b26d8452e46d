"""Committing an image: what it holds goes into its parent, or into an ancestor; the image is empty then.

Owns: the order of the steps. How data descends is `vblk.jobs.chain`'s, how an
image is emptied its format's (`Mapper.make_empty`).

Ordering rule: nothing is taken from the image before all of it is in the target,
durably; then the child's link is settled on the target's new identity, and only
then the image is emptied. Its disk reads the same throughout.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vblk.codec.guid import Guid
from vblk.drivers.vhdx_links import keep_identity, set_locator
from vblk.errors import Unsupported
from vblk.formats.vhdx.linkage import settled
from vblk.graph.mapper import Mapper
from vblk.jobs.chain import (
    Descent,
    Images,
    Member,
    announce,
    index_of,
    members_of,
    refuse_strangers,
    strangers_among,
    vhdx_of,
)
from vblk.jobs.progress import Progress


class Commit(NamedTuple):
    """One commit of `top` into `base`; None: its parent.

    With `drop` the image is left as it is: it covers the same data in the
    target. With a base that is always so, for images between would be in the
    way. `force` goes on although other images stand on what changes. `verify`
    compares what was written before anything is taken from the image.
    """

    images: Images
    top: str
    base: str | None = None
    drop: bool = False
    force: bool = False
    progress: Progress | None = None
    rate: int | None = None
    verify: bool = False

    async def members(self) -> list[Member]:
        """Look at the chain: for `run`.

        Raises:
            BlockError: It does not open.
        """
        return await members_of(self.images, self.top)

    async def run(self, members: Sequence[Member]) -> None:
        """Commit.

        Raises:
            OptionError: There is no such parent.
            GraphError: Other images stand on what would change; nothing was changed.
            StorageError: A file failed; the disk reads as before, and the commit can be run again.
        """
        index = index_of(self.images, members, self.base)
        layers, target = members[:index], members[index]
        if not self.force:
            strangers = await strangers_among(self.images, members, (*layers[1:], target))
            refuse_strangers(strangers, self.top)
        async with self.images.opened(self.top, read_only=False):
            pass  # an image that somebody uses, or that must not be written, is refused before all
        coming = await announce(self.images, layers[-1], target) if target.identity is not None else None
        await Descent(
            self.images,
            layers,
            target,
            coming,
            exact=False,
            progress=self.progress,
            rate=self.rate,
            verify=self.verify,
        ).run()
        if coming is not None:
            await self._settle(layers[-1], coming)
        if not self.drop and self.base is None:
            await self._empty()

    async def _settle(self, child: Member, parent: Guid) -> None:
        async with self.images.opened(child.name, read_only=False) as handle:
            node = vhdx_of(handle)
            keep_identity(node)
            assert node.image.locator is not None
            await set_locator(node, settled(node.image.locator, parent))

    async def _empty(self) -> None:
        async with self.images.opened(self.top, read_only=False) as handle:
            if not isinstance(handle.node, Mapper):
                raise Unsupported("the image cannot be emptied", filename=self.top)
            await handle.node.make_empty()
