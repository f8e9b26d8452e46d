"""The commands of the io language, each declared once.

Owns: the table, and the words of the help. How a command works is in the module
that its handler comes from.
"""

from vblk.qemu_io import control, images, inspect, transfers
from vblk.qemu_io.table import Command, Option

_QUIET = Option("q", "do not report the request's end")
_MACHINE = Option("C", "report for programs: bytes, requests, time, bytes and requests a second")
_VERIFY = Option("P", "the byte that all data must be", takes_value=True)
_FILL = Option("P", "the byte to write, 0xcd without", takes_value=True)
_DUMP = Option("v", "show the data")
_FUA = Option("f", "return when the data is on stable storage")
_UNMAP = Option("u", "with -z: the space may be given back")
_ZEROES = Option("z", "write zeros in the cheapest way")
_INVALID = Option("i", "send nothing, as a request that is no request")
_IGNORED = Option("p", "changes nothing; older scripts have it")
_VM_STATE = Option("b", "address the machine's state instead of the disk")

_TRANSFER = """\
Offsets and lengths are bytes, decimal or with 0x, or with one of the suffixes
b, k, M, G, T, P, E."""
_BACKGROUND = "Returns at once; aio_flush waits for the end."

COMMANDS = (
    Command(
        "read",
        transfers.read,
        "reads a number of bytes at a specified offset",
        "[-abCqv] [-P pattern [-s off] [-l len]] off len",
        alias="r",
        least=2,
        most=None,
        options=(
            _VM_STATE,
            _MACHINE,
            Option("l", "with -P: how many bytes to compare", takes_value=True),
            _IGNORED,
            _VERIFY,
            _QUIET,
            Option("s", "with -P: the first byte to compare, from the start of the data", takes_value=True),
            _DUMP,
        ),
        details=f"{_TRANSFER}\n\nExample: read -v 512 1k",
    ),
    Command(
        "readv",
        transfers.readv,
        "reads a number of bytes at a specified offset",
        "[-Cqv] [-P pattern] off len [len..]",
        least=2,
        most=None,
        options=(_MACHINE, _VERIFY, _DUMP, _QUIET),
        details=f"Each length is a buffer of one request.\n{_TRANSFER}\n\nExample: readv -v 512 1k 1k",
    ),
    Command(
        "write",
        transfers.write,
        "writes a number of bytes at a specified offset",
        "[-bcCfnquz] [-P pattern | -s source_file] off len",
        alias="w",
        least=2,
        most=None,
        options=(
            _VM_STATE,
            Option("c", "write compressed data"),
            _FUA,
            Option("n", "with -z: fail rather than write zeros out"),
            _IGNORED,
            _FILL,
            Option("s", "write the bytes of a file, over and over", takes_value=True),
            _MACHINE,
            _QUIET,
            _UNMAP,
            _ZEROES,
        ),
        details=f"{_TRANSFER}\n\nExample: write -P 0xa 512 1k",
        writes=True,
    ),
    Command(
        "writev",
        transfers.writev,
        "writes a number of bytes at a specified offset",
        "[-Cfq] [-P pattern] off len [len..]",
        least=2,
        most=None,
        options=(_FILL, _MACHINE, _FUA, _QUIET),
        details=f"Each length is a buffer of one request.\n{_TRANSFER}\n\nExample: writev 512 1k 1k",
        writes=True,
    ),
    Command(
        "aio_read",
        transfers.aio_read,
        "asynchronously reads a number of bytes",
        "[-Ciqv] [-P pattern] off len [len..]",
        least=2,
        most=None,
        options=(_MACHINE, _VERIFY, _INVALID, _DUMP, _QUIET),
        details=f"{_BACKGROUND}\n{_TRANSFER}\n\nExample: aio_read -v 512 1k 1k",
    ),
    Command(
        "aio_write",
        transfers.aio_write,
        "asynchronously writes a number of bytes",
        "[-Cfiquz] [-P pattern] off len [len..]",
        least=2,
        most=None,
        options=(
            _FILL,
            _MACHINE,
            _FUA,
            _INVALID,
            _QUIET,
            _UNMAP,
            _ZEROES,
        ),
        details=f"{_BACKGROUND}\n{_TRANSFER}\n\nExample: aio_write 512 1k 1k",
        writes=True,
    ),
    Command("aio_flush", transfers.aio_flush, "completes all outstanding aio requests"),
    Command("flush", transfers.flush, "flush all in-core file state to disk", alias="f"),
    Command(
        "discard",
        transfers.discard,
        "discards a number of bytes at a specified offset",
        "[-Cq] off len",
        alias="d",
        least=2,
        most=None,
        options=(_MACHINE, _QUIET),
        details=f"{_TRANSFER}\n\nExample: discard 512 1k",
        writes=True,
    ),
    Command(
        "truncate",
        inspect.truncate,
        "truncates the current file at the given offset",
        "[-m prealloc_mode] off",
        alias="t",
        least=1,
        most=3,
        options=(Option("m", "what to do for new space: off, metadata, falloc or full", takes_value=True),),
        writes=True,
    ),
    Command("length", inspect.length, "gets the length of the current file", alias="l"),
    Command("info", inspect.info, "prints information about the current file", alias="i"),
    Command(
        "alloc",
        inspect.alloc,
        "checks if offset is allocated in the file",
        "offset [count]",
        alias="a",
        least=1,
        most=2,
    ),
    Command("map", inspect.map_command, "prints the allocated areas of a file", ""),
    Command(
        "open",
        images.open_command,
        "open the file specified by path",
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        alias="o",
        least=1,
        most=None,
        options=(
            Option("r", "for reading only"),
            Option("s", "keep writes in a temporary overlay"),
            Option("C", "copy what is read from the backing into the image"),
            Option("n", "go around the system's cache: -t none"),
            Option("U", "even though another process writes to it"),
            Option("k", "with Linux's own aio: -i native"),
            Option("i", "how requests reach the system: threads", takes_value=True),
            Option("t", "cache mode: none, writeback, writethrough, directsync, unsafe", takes_value=True),
            Option("d", "whether discards reach the image: unmap or ignore", takes_value=True),
            Option("o", "options of the image and its driver", takes_value=True),
        ),
        details="Example: open -n -o driver=raw /tmp/data",
        closed=True,
    ),
    Command("close", images.close_command, "close the current open file", alias="c"),
    Command(
        "reopen",
        images.reopen_command,
        "reopens an image with new options",
        "[(-r|-w)] [-c cache] [-o options]",
        least=0,
        most=None,
        options=(
            Option("r", "for reading only"),
            Option("w", "for reading and writing"),
            Option("c", "with another cache mode", takes_value=True),
            Option("o", "with other options, as for open", takes_value=True),
        ),
        details="Example: reopen -o offset=1M",
    ),
    Command(
        "break",
        control.set_break,
        "sets a breakpoint on event and tags the stopped request as tag",
        "event tag",
        least=2,
        most=2,
    ),
    Command("remove_break", control.remove_break, "remove a breakpoint by tag", "tag", least=1, most=1),
    Command("resume", control.resume, "resumes the request tagged as tag", "tag", least=1, most=1),
    Command(
        "wait_break", control.wait_break, "waits for the suspension of a request", "tag", least=1, most=1
    ),
    Command(
        "sleep", control.sleep, "waits for the given value in milliseconds", least=1, most=1, closed=True
    ),
    Command(
        "sigraise",
        control.sigraise,
        "raises a signal",
        "signal",
        least=1,
        most=1,
        details="Example: sigraise 15",
        closed=True,
    ),
    Command("abort", control.abort, "simulate a program crash using abort(3)", closed=True),
    Command(
        "help",
        control.help_command,
        "help for one or all commands",
        "[command]",
        alias="?",
        least=0,
        most=1,
        closed=True,
    ),
    Command("quit", control.quit_command, "exit the program", alias="q", closed=True),
)


def by_name() -> dict[str, Command]:
    """Return the commands by their names and their aliases."""
    table = {command.name: command for command in COMMANDS}
    return table | {command.alias: command for command in COMMANDS if command.alias is not None}
