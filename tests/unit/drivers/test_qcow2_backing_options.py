"""What the user says of backing images that the image itself names."""

import asyncio
from pathlib import Path

from tests.support.chain_lab import make_chain
from vblk.graph.registry import Graph
from vblk.opening import open_image
from vblk.options import parse_image_opts


def test_images_behind_get_the_names_that_options_give_them(tmp_path: Path) -> None:
    content = make_chain(tmp_path, ["raw", "qcow2", "qcow2", "qcow2"])
    top = tmp_path / "3.qcow2"
    words = "node-name=top,backing.node-name=upper,backing.backing.node-name=lower"

    async def main() -> None:
        async with Graph() as graph:
            options = parse_image_opts(f"driver=qcow2,file.driver=file,file.filename={top},{words}")
            disk = await open_image(graph, options)
            named = {node.name: node for node in graph.nodes()}
            assert Path(named["upper"].filename).name == "2.qcow2"
            assert Path(named["lower"].filename).name == "1.qcow2"
            assert named["top"].filename == str(top)
            assert await disk.read(0, disk.size) == content

    asyncio.run(main())
