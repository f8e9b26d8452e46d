"""One verb of the command line: its options, how they are read, how it runs.

Owns: the bridge between click, which declares options and words their help, and
GNU's syntax (`scan`), which QEMU's tools speak. A verb is an arguments
dataclass, a list of options whose names are its fields, and a function.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

import click

from vblk.cli.console import Console
from vblk.cli.failure import Failure
from vblk.cli.scan import Scan, ScanError, scan_arguments

A = TypeVar("A")

Run = Callable[[A, Console], Coroutine[Any, Any, int] | int]


def flag(*names: str, help: str, hidden: bool = False) -> click.Option:
    """Declare an option that is there or not."""
    return click.Option(names, is_flag=True, default=False, help=help, hidden=hidden)


def option(
    *names: str,
    help: str,
    metavar: str,
    type: click.ParamType[Any] | None = None,
    default: Any = None,
    multiple: bool = False,
) -> click.Option:
    """Declare an option with a value; the last one given counts, or with `multiple` all."""
    return click.Option(
        names,
        help=help,
        metavar=metavar,
        type=type or click.UNPROCESSED,
        default=() if multiple else default,
        multiple=multiple,
    )


class HelpWanted(Exception):
    """The words of a verb ask for its help."""


class Verb(click.Command, Generic[A]):
    """A click command whose words are scanned as getopt scans them."""

    def __init__(
        self,
        name: str,
        run: Run[A],
        arguments: Callable[..., A],
        options: Sequence[click.Option],
        *,
        operands: str,
        help: str,
    ) -> None:
        collected = click.Argument(["operands"], nargs=-1, metavar=operands, type=click.UNPROCESSED)
        super().__init__(name, params=[*options, collected], help=help, add_help_option=False)
        self._run = run
        self._arguments = arguments

    def read(self, words: Sequence[str], program: str) -> A:
        """Turn the words after the verb into its arguments.

        Raises:
            Failure: A word is no option, or has a value of the wrong kind.
            HelpWanted: One of them is `-h` or `--help`.
        """
        assert self.name is not None
        context = click.Context(self, info_name=f"{program} {self.name}")
        with context:
            self.parse_args(context, list(words))
        return self._arguments(**context.params)

    def help_page(self, program: str) -> str:
        """Return the verb's help."""
        assert self.name is not None
        return self.get_help(click.Context(self, info_name=f"{program} {self.name}", max_content_width=100))

    def start(self, arguments: A, console: Console) -> Coroutine[Any, Any, int] | int:
        """Run the verb, or return the coroutine that does."""
        return self._run(arguments, console)

    def _options(self) -> dict[str, click.Option]:
        return {
            name: param for param in self.params if isinstance(param, click.Option) for name in param.opts
        }

    def scan(self, words: Sequence[str]) -> Scan:
        """Divide words into options, in their order, and operands.

        Raises:
            Failure: A word is no option, or lacks its value.
        """
        table = {name: not param.is_flag for name, param in self._options().items()}
        try:
            return scan_arguments(words, table | {"-h": False, "--help": False})
        except ScanError as error:
            raise Failure(str(error), hint=True) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Scan with GNU's rules; let click convert the values in the order given."""
        scan = self.scan(args)
        by_name = self._options()
        if any(spelling in ("-h", "--help") for spelling, _ in scan.options):
            raise HelpWanted
        values: dict[str, Any] = {}
        order: list[click.Parameter] = []
        for spelling, value in scan.options:
            param = by_name[spelling]
            assert param.name is not None
            order.append(param)
            if param.is_flag:
                values[param.name] = True
            elif param.multiple:
                values.setdefault(param.name, []).append(value)
            else:
                values[param.name] = value
        values["operands"] = scan.operands
        for each in click.core.iter_params_for_processing(order, self.get_params(ctx)):
            each.handle_parse_result(ctx, values, [])
        return []


class Answerable(Protocol):
    """The arguments of a verb that answers for help and version itself."""

    help: bool
    version: bool


P = TypeVar("P", bound=Answerable)


class ProgramVerb(Verb[P]):
    """A verb that is a program of QEMU's, too: `program` names it.

    `more` is added to its help; `{}` in it stands for how it was called.
    """

    program: str
    more: str = ""

    def read(self, words: Sequence[str], program: str) -> P:
        """Turn the words of a call into its arguments; those of the program `program` may ask for help."""
        try:
            return super().read(words, program)
        except HelpWanted:
            arguments = self._arguments(operands=())
            arguments.help = True
            return arguments

    def help_page(self, program: str) -> str:
        """Return the help of a program that may consist of this verb alone."""
        called = program if program == self.program else f"{program} {self.name}"
        page = self.get_help(click.Context(self, info_name=called, max_content_width=100))
        return page + self.more.format(called)

    def answered(self, arguments: P, console: Console) -> bool:
        """Print help or version, if one of them is asked for; return whether it was."""
        if arguments.help:
            console.print(self.help_page(console.name))
        elif arguments.version:
            from vblk.cli.texts import version_text

            console.print(version_text(console.name))
        return arguments.help or arguments.version
