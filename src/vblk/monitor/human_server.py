"""One person at a monitor with `mode=readline`, or a program that plays one.

Owns: the banner, the prompt, and the lines. What a line does is `vblk.monitor.human`'s.

Ordering rule: what a line answers comes before the next prompt.
"""

from typing import Final

from vblk.monitor.channel import Channel
from vblk.monitor.human import LINE_END, HumanMonitor

LINE_MAX: Final = 64 << 10
"""The longest line, in bytes."""

PROMPT: Final = b"(qemu) "


class HumanServer:
    """Serves one connection until it ends.

    What was typed is written back, unless a terminal does that itself.
    """

    def __init__(self, monitor: HumanMonitor, channel: Channel) -> None:
        """Serve the person behind `channel`, which is closed in the end."""
        self._monitor = monitor
        self._channel = channel
        self._echo = not channel.is_terminal

    async def run(self) -> None:
        """Greet, and serve until the person goes."""
        numbers = self._monitor.daemon.version["qemu"]
        version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
        self._say(f"QEMU {version} monitor - type 'help' for more information{LINE_END}")
        self._channel.send(PROMPT)
        pending = b""
        try:
            while data := await self._channel.receive():
                *lines, pending = (pending + data.replace(b"\r", b"\n")).split(b"\n")
                for line in lines:
                    await self._serve(line)
                if len(pending) > LINE_MAX:
                    pending = b""
                    self._say(f"{LINE_END}the line is too long{LINE_END}")
                    self._channel.send(PROMPT)
                await self._channel.sent()
        finally:
            self._channel.close()

    async def _serve(self, line: bytes) -> None:
        text = line.decode("utf-8", "surrogateescape")
        if self._echo:
            self._say(text + LINE_END)
        self._say(await self._answer(text))
        if not self._monitor.daemon.ended.is_set():
            self._channel.send(PROMPT)

    async def _answer(self, text: str) -> str:
        try:
            return await self._monitor.execute(text)
        except Exception as error:
            self._monitor.daemon.log.defect("the human monitor", error)
            return f"Error: internal error: {type(error).__name__}{LINE_END}"

    def _say(self, text: str) -> None:
        self._channel.send(text.encode("utf-8", "surrogateescape"))
