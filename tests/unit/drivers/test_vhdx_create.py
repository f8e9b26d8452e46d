"""Creating VHDX files through a node: order, durability and what stood there before."""

import asyncio

import pytest

from vblk.drivers.vhdx import VhdxNode, load_writable
from vblk.drivers.vhdx_create import create_image, finish_image, relative_path
from vblk.errors import OptionError, UnsupportedFeature
from vblk.formats.vhdx import load_image
from vblk.formats.vhdx.create import NewVhdx
from vblk.graph.node import Preallocation
from vblk.protocols.memory import MemoryNode
from vblk.units import GIB, MIB


def test_whatever_stood_in_the_file_is_gone() -> None:
    async def scenario() -> None:
        leaf = MemoryNode("m", size=64 * MIB, data=b"\xaa" * (8 * MIB))
        await create_image(leaf, NewVhdx(size=GIB))
        image = await load_image(leaf.read, leaf.size, filename="m")
        assert image.virtual_size == GIB
        assert image.findings == []
        assert leaf.size == image.regions.bat.file_offset + image.regions.bat.length

    asyncio.run(scenario())


def test_an_image_that_cannot_be_leaves_the_file_alone() -> None:
    async def scenario() -> None:
        leaf = MemoryNode("m", size=4096, data=b"precious")
        with pytest.raises(OptionError):
            await create_image(leaf, NewVhdx(size=0))
        with pytest.raises(OptionError, match="only a fixed"):
            await create_image(leaf, NewVhdx(size=GIB), preallocation=Preallocation.FULL)
        assert await leaf.read(0, 8) == b"precious"

    asyncio.run(scenario())


def test_an_image_is_refused_until_it_is_finished_and_its_maker_can_fill_it() -> None:
    async def scenario() -> None:
        leaf = MemoryNode("m", size=0)
        await create_image(leaf, NewVhdx(size=GIB), unfinished=True)
        with pytest.raises(UnsupportedFeature, match="never finished"):
            await load_writable(leaf, "m")
        node = VhdxNode("v", "m", file=leaf, image=await load_writable(leaf, "m", unfinished=True))
        await node.start_writing()
        await node.write(5 * MIB, b"content")
        await node.close()
        with pytest.raises(UnsupportedFeature):
            await load_writable(leaf, "m")
        await finish_image(leaf)
        await finish_image(leaf)
        node = VhdxNode("v", "m", file=leaf, image=await load_writable(leaf, "m"))
        assert await node.read(5 * MIB, 7) == b"content"
        assert (await node.check()).findings == []

    asyncio.run(scenario())


def test_a_parent_is_named_from_the_childs_folder() -> None:
    assert relative_path("/a/b/child.vhdx", "/a/b/base.vhdx") == ".\\base.vhdx"
    assert relative_path("/a/b/child.vhdx", "/a/c/base.vhdx") == "..\\c\\base.vhdx"
    assert relative_path("/a/b/child.vhdx", "/a/b/c/base.vhdx") == ".\\c\\base.vhdx"
