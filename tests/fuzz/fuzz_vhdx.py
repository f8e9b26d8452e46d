"""The fuzzer of the VHDX reader, for as long as one has: `make fuzz`, or by hand from the repository's root:

    python -m tests.fuzz.fuzz_vhdx tests/fuzz/corpus/vhdx -max_total_time=600 -timeout=20 -rss_limit_mb=700

Every argument is libFuzzer's. A crash is anything but a `BlockError`, more
bytes read than a small file is worth, or a limit of libFuzzer.
"""

import sys
from typing import Any, cast

import atheris

with cast("Any", atheris).instrument_imports(include=["vblk.formats", "vblk.codec"]):
    from tests.support.mutants import exercise

INPUT_MAX = 512


def main() -> None:
    """Run the fuzzer until it finds something or its time is over."""
    fuzzer = cast("Any", atheris)
    fuzzer.Setup([*sys.argv, f"-max_len={INPUT_MAX}"], exercise)
    fuzzer.Fuzz()


if __name__ == "__main__":
    main()
