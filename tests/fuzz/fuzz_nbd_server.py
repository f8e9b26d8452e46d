"""The fuzzer of the NBD server: `make fuzz`, or by hand from the repository's root:

    python -m tests.fuzz.fuzz_nbd_server tests/fuzz/corpus/nbd_server -max_total_time=600 -timeout=20

Every argument is libFuzzer's. A crash is anything but a `BlockError`, or a limit
of libFuzzer.
"""

import sys
from typing import Any, cast

import atheris

with cast("Any", atheris).instrument_imports(include=["vblk.wire", "vblk.codec"]):
    from tests.support.nbd_requests import exercise

INPUT_MAX = 512


def main() -> None:
    """Run the fuzzer until it finds something or its time is over."""
    fuzzer = cast("Any", atheris)
    fuzzer.Setup([*sys.argv, f"-max_len={INPUT_MAX}"], exercise)
    fuzzer.Fuzz()


if __name__ == "__main__":
    main()
