"""Requests that fail, stop, or are cut to size on demand: QEMU's `blkdebug`.

Owns: the order of events inside a request, breakpoints, and what a node with
poor abilities (`align`, `max-transfer`, ...) makes of requests. When something
fails is decided in `fault_rules`. It knows nothing of the formats around it.

Ordering rule: an event happens before the rules are asked, so that a rule can
fail the very request that raised its event.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vblk.errors import BlockError, Misaligned, OptionError, Unsupported
from vblk.extent import Kind
from vblk.filters.events import Event, EventListener, InjectedError
from vblk.filters.fault_options import Chance, Options, access_of, check_options, rules_of, with_config
from vblk.filters.fault_rules import IoType, Rules
from vblk.graph.alignment import PIECE_MAX, Aligner, Moment, whole_blocks
from vblk.graph.edge import Edge, Role
from vblk.graph.node import Buffer, Filter, Node, Preallocation, Span, coalesce
from vblk.graph.site import Site
from vblk.options import bind, check_children

_MOMENTS = {moment: Event(moment.value) for moment in Moment}


@dataclass(slots=True, eq=False)
class _Stopped:
    tag: str
    wake: "asyncio.Future[None]"


class FaultNode(Filter, EventListener):
    """A node that fails as its rules say and otherwise passes everything on.

    Concurrency: any number of requests; a stopped request holds what it holds.
    Cancellation: a stopped request that is cancelled is no longer stopped.
    """

    driver: ClassVar[str] = "blkdebug"

    def __init__(
        self,
        name: str,
        filename: str,
        *,
        read_only: bool,
        file: Node,
        rules: Rules,
        options: Options,
        chance: Chance | None = None,
    ) -> None:
        """Decorate `file`; `options` are checked already."""
        super().__init__(name, filename, read_only=read_only, file=file)
        self._rules = rules
        self._chance = chance
        self._limits = options
        self.own_access = self.idle_access = access_of(options)
        self.alignment = max(1, options.align, file.alignment)
        self._aligner = (
            Aligner(self, options.align, hook=self._at_moment, overtaking=True) if options.align > 1 else None
        )
        self._breakpoints: list[tuple[Event, str]] = []
        self._stopped: list[_Stopped] = []
        self._stop_happened = asyncio.Event()
        self._say: Callable[[str], None] | None = None
        self._unflushed = False

    def child_changed(self, edge: Edge) -> None:
        """Pass requests on to the child that is there now, in blocks as before."""
        super().child_changed(edge)
        self.alignment = max(1, self._limits.align, edge.node.alignment)

    # Events and breakpoints

    async def happened(self, event: Event) -> None:
        """Make rules active, then stop here if a breakpoint says so."""
        self._rules.happened(event)
        for breakpoint_ in [each for each in self._breakpoints if each[0] is event]:
            self._breakpoints.remove(breakpoint_)
            await self._stop(breakpoint_[1])

    async def _stop(self, tag: str) -> None:
        stopped = _Stopped(tag, asyncio.get_running_loop().create_future())
        self._stopped.append(stopped)
        self._stop_happened.set()
        self._report(f"blkdebug: Suspended request '{tag}'")
        try:
            await stopped.wake
        except asyncio.CancelledError:
            if stopped in self._stopped:
                self._stopped.remove(stopped)
            raise

    def add_breakpoint(self, event: Event, tag: str) -> None:
        """Stop the next request that reaches `event`."""
        self._breakpoints.append((event, tag))

    def remove_breakpoint(self, tag: str) -> bool:
        """Forget the breakpoints of a tag; its stopped requests go on."""
        kept = [each for each in self._breakpoints if each[1] != tag]
        removed = len(kept) < len(self._breakpoints)
        self._breakpoints = kept
        while self.resume(tag):
            pass
        return removed

    def resume(self, tag: str) -> bool:
        """Let one stopped request go on."""
        for stopped in self._stopped:
            if stopped.tag == tag:
                self._stopped.remove(stopped)
                self._report(f"blkdebug: Resuming request '{tag}'")
                if not stopped.wake.done():
                    stopped.wake.set_result(None)
                return True
        return False

    def resume_all(self) -> None:
        """Forget every breakpoint; everything goes on."""
        self._breakpoints.clear()
        while self._stopped:
            self.resume(self._stopped[0].tag)

    async def wait_stopped(self, tag: str) -> None:
        """Return when a request is stopped under `tag`."""
        while all(stopped.tag != tag for stopped in self._stopped):
            self._stop_happened.clear()
            await self._stop_happened.wait()

    def report_to(self, say: Callable[[str], None]) -> None:
        """Say in `say` which requests stop and go on."""
        self._say = say

    def _report(self, sentence: str) -> None:
        if self._say is not None:
            self._say(sentence)

    async def _at_moment(self, moment: Moment) -> None:
        await self.happened(_MOMENTS[moment])

    async def _check(self, kind: IoType, offset: int, length: int) -> None:
        rule = self._rules.failing(kind, offset, length)
        if rule is None and self._chance is not None:
            rule = self._chance.failing()
        if rule is None:
            return
        if not rule.immediately:
            await asyncio.sleep(0)
        raise InjectedError(
            rule.error, filename=self.filename, operation=kind.value, offset=offset, length=length
        )

    # Reading and writing

    def try_read(self, offset: int, length: int) -> bytes | None:
        """Never answer at once: every read passes the rules."""
        return None

    async def read(self, offset: int, length: int) -> bytes:
        """Read, unless a rule says no."""
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read into a buffer, unless a rule says no."""
        await self.happened(Event.READ_AIO)
        if self._aligner is not None:
            await self._aligner.read_into(offset, buffer)
        else:
            await self.read_aligned(offset, buffer)

    async def read_aligned(self, offset: int, buffer: memoryview) -> None:
        """Read from the child in transfers of the greatest size; zeros past its end."""
        for start, length in _pieces(offset, len(buffer), self._limits.max_transfer):
            await self._check(IoType.READ, start, length)
            piece = buffer[start - offset : start - offset + length]
            inside = max(0, min(length, self._file.size - start))
            if inside:
                await self._file.read_into(start, piece[:inside])
            piece[inside:] = bytes(length - inside)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write, unless a rule says no."""
        self.require_writable()
        self._unflushed = True
        await self.happened(Event.WRITE_AIO)
        if self._aligner is not None:
            await self._aligner.write(offset, data)
        else:
            await self.write_aligned(offset, memoryview(data).cast("B"))
        if fua:
            await self.flush()

    async def write_aligned(self, offset: int, data: memoryview) -> None:
        """Write to the child in transfers of the greatest size."""
        await self.happened(Event.PWRITEV)
        await self._store(offset, data)
        await self.happened(Event.PWRITEV_DONE)

    async def _store(self, offset: int, data: memoryview) -> None:
        for start, length in _pieces(offset, len(data), self._limits.max_transfer):
            await self._check(IoType.WRITE, start, length)
            await self._file.write(start, data[start - offset : start - offset + length])

    async def trim(self, size: int) -> None:
        """Cut off what padding added; a writable node is whole blocks long, so nothing is."""
        raise Misaligned("Image size is not a multiple of request alignment", filename=self.filename)

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, no_fallback: bool = False, fua: bool = False
    ) -> None:
        """Write zeros, unless a rule says no."""
        self.require_writable()
        self._unflushed = True

        async def body(start: int, count: int) -> None:
            await self.happened(Event.PWRITEV_ZERO)
            await self._zero(start, count, unmap=unmap, no_fallback=no_fallback)
            await self.happened(Event.PWRITEV_DONE)

        if not length:
            return
        if self._aligner is not None:
            await self._aligner.write_zeroes(offset, length, body)
        else:
            await body(offset, length)
        if fua:
            await self.flush()

    async def _zero(self, offset: int, length: int, *, unmap: bool, no_fallback: bool) -> None:
        start, whole = whole_blocks(offset, length, max(1, self._limits.opt_write_zero))
        if whole < length and no_fallback:
            raise Unsupported("Operation not supported", filename=self.filename, operation="write-zeroes")
        if not whole:
            await self._write_zeros_out(offset, length)
            return
        await self._write_zeros_out(offset, start - offset)
        for piece, count in _pieces(start, whole, self._limits.max_write_zero):
            await self._check(IoType.WRITE_ZEROES, piece, count)
            await self._file.write_zeroes(piece, count, unmap=unmap, no_fallback=no_fallback)
        await self._write_zeros_out(start + whole, offset + length - start - whole)

    async def _write_zeros_out(self, offset: int, length: int) -> None:
        for start, count in _pieces(offset, length, PIECE_MAX):
            await self._store(start, memoryview(bytes(count)))

    async def discard(self, offset: int, length: int) -> None:
        """Discard whole blocks, unless a rule says no."""
        self.require_writable()
        self._unflushed = True
        unit = max(1, self._limits.align, self._limits.opt_discard)
        start, whole = whole_blocks(offset, length, unit)
        for piece, count in _pieces(start, whole, self._limits.max_discard):
            await self._check(IoType.DISCARD, piece, count)
            await self._file.discard(piece, count)

    async def flush(self) -> None:
        """Flush if something was written, unless a rule says no."""
        await self.happened(Event.FLUSH_TO_OS)
        if not self._unflushed:
            return
        await self.happened(Event.FLUSH_TO_DISK)
        await self._check(IoType.FLUSH, 0, 0)
        self._unflushed = False
        await self._file.flush()

    # Everything else

    async def resolve(self, offset: int, length: int) -> list[Span]:
        """Say at which depth a range is; all of it is to be had from this node, so that reads are seen."""
        spans = await self._file.resolve(offset, length)
        for span in spans:
            span.kind, span.leaf, span.leaf_offset = Kind.DATA, self, span.guest_offset
        return coalesce(spans)

    async def allocation(self, offset: int, length: int) -> list[Span]:
        """Answer as the child does, with the data to be had from this node."""
        await self._check(IoType.BLOCK_STATUS, offset, length)
        spans = await self._file.allocation(offset, length)
        for span in spans:
            if span.kind is Kind.DATA:
                span.leaf, span.leaf_offset = self, span.guest_offset
        return spans

    async def resize(
        self, size: int, *, preallocation: Preallocation = Preallocation.OFF, exact: bool = True
    ) -> None:
        """Change the child's size, to whole blocks where the node wants these."""
        self.require_writable()
        if size % max(1, self._limits.align):
            raise Misaligned("Image size is not a multiple of request alignment", filename=self.filename)
        await self._file.resize(size, preallocation=preallocation, exact=exact)

    async def reopen(self, *, read_only: bool) -> None:
        """Take on the new access; the child follows by itself."""
        if not read_only:
            _check_whole_blocks(self._file, self._limits.align)
        self.read_only = read_only

    def info(self) -> Mapping[str, Any]:
        """Nothing is special to this filter."""
        return {}

    async def close(self) -> None:
        """Let every stopped request go on."""
        self.resume_all()


def _pieces(offset: int, length: int, longest: int) -> list[tuple[int, int]]:
    """Cut a range into offsets and lengths of at most `longest` bytes; 0 is any length."""
    step = longest or max(1, length)
    return [(start, min(step, offset + length - start)) for start in range(offset, offset + length, step)]


def _check_whole_blocks(file: Node, align: int) -> None:
    if file.size % max(1, align):
        raise OptionError(
            "Cannot get 'write' permission without 'resize': "
            "Image size is not a multiple of request alignment"
        )


async def open_node(site: Site) -> FaultNode:
    """Open the image under the key `image` and put the filter on it."""
    check_children(site.options, "blkdebug", "image")
    own = await with_config(site, site.options.own)
    options = bind(own, Options, "blkdebug")
    check_options(options)
    rules = rules_of(options)
    chance = (
        Chance(options.random_rate, options.random_seed, options.random_errno)
        if options.random_rate
        else None
    )
    file = await site.child("image")
    try:
        if not site.read_only:
            _check_whole_blocks(file, options.align)
        node = FaultNode(
            site.name,
            site.filename,
            read_only=site.read_only,
            file=file,
            rules=rules,
            options=options,
            chance=chance,
        )
    except BlockError:
        await site.graph.discard_unused(file)
        raise
    await site.take(node, file, "image", Role.FILTERED)
    return node
