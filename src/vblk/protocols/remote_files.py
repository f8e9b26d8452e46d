"""Which protocols make new files on other machines, and making one.

Owns: the list of them. Each is loaded when it is asked to.
"""

from typing import Final

from vblk.graph.registry import Graph
from vblk.options import NodeOptions
from vblk.protocols.remote_leaf import RemoteLeaf

MAKERS: Final = frozenset({"gluster", "ssh"})


async def make_remote_file(graph: Graph, options: NodeOptions, *, filename: str, cache: str) -> RemoteLeaf:
    """Open for writing the file that the options of one of `MAKERS` name, and make it if there is none.

    Raises:
        OptionError: They name none.
        StorageError: There is no such server, or it refuses.
        Unsupported: What speaks to it is not installed, or it cannot do what formats rest on.
    """
    if options.driver == "gluster":
        from vblk.protocols.gluster import make_node as make_on_volume

        return await make_on_volume(graph, options.own, filename=filename, cache=cache)
    from vblk.protocols.ssh import make_node as make_on_server

    return await make_on_server(graph, options.own, filename=filename, cache=cache)
