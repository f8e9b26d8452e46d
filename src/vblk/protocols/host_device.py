"""Host devices as leaves: disks, partitions, loop devices, CD-ROM drives.

Owns: what sets a device apart from a file: nobody can change its length.
"""

from typing import ClassVar

from vblk.errors import Unsupported
from vblk.graph.node import Preallocation
from vblk.protocols.file_node import FileNode


class HostDeviceNode(FileNode):
    """A block device of the host, or a character device that has a length."""

    driver: ClassVar[str] = "host_device"

    async def _change_size(self, size: int, preallocation: Preallocation, exact: bool) -> None:
        """Accept what asks for nothing; see `Node.resize`."""
        if preallocation is not Preallocation.OFF:
            raise Unsupported(
                f"Unsupported preallocation mode: {preallocation.value}", filename=self.filename
            )
        present = await self.blocking(self.space.size, "resize")
        if size != present and exact:
            raise Unsupported("Cannot resize device files", filename=self.filename)
        if size > present:
            raise Unsupported("Cannot grow device files", filename=self.filename)
        self._size = present


class HostCdromNode(HostDeviceNode):
    """A CD-ROM drive of the host: a device whose medium may be absent, and is then 0 bytes long."""

    driver: ClassVar[str] = "host_cdrom"
