"""What the io commands print: sizes, rates, times and dumps.

Owns: the form of every figure. Pure: text in, text out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_ROW = 16


def in_units(value: float) -> str:
    """Write bytes in the greatest unit that they fill: `64 KiB`, `1.500 KiB`, `512 bytes`.

    Three zeros behind the point, wherever they begin, are cut off with what
    follows: of a number of bytes below one thousandth nothing is left but `0`.
    """
    step = next((step for step in range(len(_UNITS), 0, -1) if value >= 1 << 10 * step), 0)
    text = f"{value / (1 << 10 * step):.3f}" if step else f"{value:.6f}"
    unit = _UNITS[step - 1] if step else "bytes"
    return f"{text.partition('.000')[0]} {unit}"


def clock_time(seconds: float) -> str:
    """Write a duration as `h:mm:ss.cc`."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{whole:02}.{int(seconds % 1 * 100):02}"


def short_time(seconds: float) -> str:
    """Write a duration as `ss.cc sec`, or from a minute on as `clock_time` does."""
    if seconds >= 60:
        return clock_time(seconds)
    return f"{int(seconds):02}.{int(seconds % 1 * 100):02} sec"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A finished request: `done` of `wanted` bytes at `offset`, in `seconds`.

    `verb` is how it is reported: `read`, `wrote` or `discard`.
    """

    verb: str
    offset: int
    done: int
    wanted: int
    seconds: float

    def lines(self, *, machine: bool) -> Iterator[str]:
        """Return the report, for a person or as one line for a program."""
        seconds = max(self.seconds, 1e-9)
        bytes_rate, rate = self.done / seconds, 1 / seconds
        if machine:
            yield f"{self.done},1,{clock_time(self.seconds)},{bytes_rate:.3f},{rate:.3f}"
            return
        yield f"{self.verb} {self.done}/{self.wanted} bytes at offset {self.offset}"
        yield (
            f"{in_units(self.done)}, 1 ops; {short_time(self.seconds)} "
            f"({in_units(bytes_rate)}/sec and {rate:.4f} ops/sec)"
        )


def dump(data: bytes | bytearray | memoryview, offset: int) -> Iterator[str]:
    """Return rows of sixteen bytes, in hexadecimal and as letters and digits."""
    for start in range(0, len(data), _ROW):
        row = bytes(data[start : start + _ROW])
        text = "".join(chr(byte) if chr(byte).isalnum() and byte < 0x80 else "." for byte in row)
        yield f"{offset + start:08x}:  {''.join(f'{byte:02x} ' for byte in row)} {text}"
