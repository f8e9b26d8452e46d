"""The options of a machine: which take a value, and what of them matters here.

Owns: the reading of the command line into a list in its order. What has no meaning
without a guest is passed over by name; anything else is refused.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from vblk.errors import OptionError

PASSED_OVER: Final = frozenset(
    "accel device-help display global incoming m machine M msg name nographic nodefaults S serial vga".split()
)
"""Options about a guest, its screen and its incoming state."""

WITHOUT_VALUE: Final = frozenset("enable-kvm nodefaults nographic no-shutdown S snapshot".split())

KNOWN: Final = PASSED_OVER | frozenset(
    "add-fd blockdev chardev device drive mon monitor object qmp qmp-pretty qtest snapshot".split()
)


def read_options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (name without dashes, value) of every option that matters.

    Raises:
        OptionError: An option is unknown, or lacks its value.
    """
    rest = iter(words)
    for word in rest:
        name = word.lstrip("-")
        if not word.startswith("-") or name not in KNOWN | WITHOUT_VALUE:
            raise OptionError(f"{word}: the machine of these tests has no such option")
        value = ""
        if name not in WITHOUT_VALUE:
            try:
                value = next(rest)
            except StopIteration:
                raise OptionError(f"{word}: requires an argument") from None
        if name not in PASSED_OVER:
            yield name, value
