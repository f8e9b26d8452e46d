"""Images of a chain as local files: opened, found and deleted by their paths.

Owns: what `vblk.jobs.chain.Images` asks for, on the file system.

Ordering rule: a deletion is durable, in the folder, before the next group of
files is deleted.
"""

import os
import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import islice

from vblk.aio.clock import Clock, LoopClock
from vblk.aio.engine import storage_error
from vblk.aio.file_calls import sync_folder
from vblk.drivers.bitmaps_beside import forget_bitmaps
from vblk.drivers.vhdx import read_up_to
from vblk.drivers.vhdx_create import relative_path
from vblk.drivers.vhdx_parent import local_path
from vblk.errors import BlockError
from vblk.formats.vhdx import load_image
from vblk.graph.handle import Handle
from vblk.graph.node import Node
from vblk.graph.plane import Mover
from vblk.graph.registry import Graph
from vblk.graph.site import ChainRules
from vblk.jobs.chain import Kin
from vblk.opening import open_image
from vblk.options import NodeOptions

EXTENSIONS = (".vhdx", ".avhdx")
KIN_MAX = 4096
"""How many files of a folder are looked at: a chain has a few, a folder may have millions."""


class LocalImages:
    """The images of the chain whose top `options` name; see `vblk.jobs.chain.Images`.

    Args:
        graph: Where they are opened; its gate judges the paths that images name.
        top: The top's name, as the user gave it.
        options: The same as typed options.
        rules: Where parents are looked for.
        cache: The cache mode of what is written.
        force_share: Open what is only read even though another process writes to it.
    """

    def __init__(
        self,
        graph: Graph,
        top: str,
        options: NodeOptions,
        rules: ChainRules,
        *,
        cache: str = "writeback",
        force_share: bool = False,
    ) -> None:
        self.mover = Mover(graph.engine)
        self.clock: Clock = LoopClock()
        self._graph = graph
        self._top = top
        self._options = options
        self._rules = rules
        self._cache = cache
        self._force_share = force_share
        self._formats: dict[str, str] = {}
        self._path = top

    @asynccontextmanager
    async def opened(
        self, name: str, *, read_only: bool = True, backing: bool = False
    ) -> AsyncGenerator[Handle, None]:
        """Open an image while the block runs."""
        is_top = name == self._top
        if is_top:
            options = self._options
        else:
            below = NodeOptions(driver="file", own={"filename": name})
            options = NodeOptions(driver=self._formats.get(name, "vhdx"), children={"file": below})
        handle = await open_image(
            self._graph,
            options,
            read_only=read_only,
            cache=self._cache,
            backing=backing,
            force_share=self._force_share and read_only,
            rules=self._rules if is_top else self._rules._replace(parent=None),
        )
        if is_top:
            self._path = local_path(handle.node)
            if options.driver is None:
                self._options = replace(options, driver=handle.node.driver)
        try:
            yield handle
        finally:
            await self._graph.release(handle)

    def name_of(self, node: Node) -> str:
        """Return the path of the file below a node."""
        path = local_path(node)
        self._formats[path] = node.driver
        return path

    def _path_of(self, name: str) -> str:
        return self._path if name == self._top else name

    def is_same(self, name: str, other: str) -> bool:
        """Tell whether two names are of one file."""
        try:
            return os.path.samefile(self._path_of(name), self._path_of(other))
        except (OSError, ValueError):
            return False

    def path_between(self, child: str, parent: str) -> str:
        """Return a parent's path from its child's folder."""
        return relative_path(self._path_of(child), self._path_of(parent))

    def named_by(self, child: str, path: str) -> str | None:
        """Return the file at such a path, if the gate lets the child name it."""
        here = self._path_of(child)
        roots = (*self._rules.parent_dirs, *(local for _, local in self._rules.path_map))
        wanted = os.path.join(os.path.dirname(os.path.realpath(here)), path.replace("\\", "/"))
        try:
            return self._graph.gate.admit(wanted, named_by=here, roots=roots)
        except FileNotFoundError:
            return None

    async def kin(self, names: Sequence[str]) -> list[Kin]:
        """Look through the folders of the chain for further images with a parent."""
        known = [self._path_of(name) for name in names]
        found: list[Kin] = []
        for path in await self._graph.engine.run(lambda: _images_beside(known)):
            with suppress(BlockError):
                kin = await self._look(path)
                if kin is not None:
                    found.append(kin)
        return found

    async def _look(self, path: str) -> Kin | None:
        """Read what a file says of itself, whoever uses it."""
        options = NodeOptions(
            driver="raw", children={"file": NodeOptions(driver="file", own={"filename": path})}
        )
        handle = await open_image(self._graph, options, force_share=True)
        try:
            node = handle.node

            async def read(offset: int, length: int) -> bytes:
                return await read_up_to(node, offset, length)

            image = await load_image(read, node.size, filename=path)
        finally:
            await self._graph.release(handle)
        return None if image.locator is None else Kin(path, image.data_write_guid, image.locator)

    async def remove(self, names: Sequence[str]) -> None:
        """Delete files in this order, then make that durable."""
        paths = [self._path_of(name) for name in names]
        await self._graph.engine.run(lambda: _remove(paths))


def _images_beside(known: Sequence[str]) -> list[str]:
    """Return the images in the folders of some files, which are left out themselves."""
    real = [os.path.realpath(path) for path in known]
    paths: list[str] = []
    for folder in dict.fromkeys(map(os.path.dirname, real)):
        with suppress(OSError), os.scandir(folder) as entries:
            few = islice((each for each in entries if each.name.lower().endswith(EXTENSIONS)), KIN_MAX)
            paths += sorted(each.path for each in few if each.is_file())
    return [path for path in paths if os.path.realpath(path) not in real]


def _remove(paths: Sequence[str]) -> None:
    for path in paths:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue  # a device is nobody's to delete
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_error(error, filename=path, operation="delete") from error
        forget_bitmaps(path)
    for folder in dict.fromkeys(os.path.dirname(os.path.abspath(path)) for path in paths):
        sync_folder(folder)
