"""The fuzzer of FUSE requests: `make fuzz`, or by hand from the repository's root:

    python -m tests.fuzz.fuzz_fuse tests/fuzz/corpus/fuse -max_total_time=600 -timeout=20 -rss_limit_mb=700

Every argument is libFuzzer's. A crash is anything but a `PeerError`, or a limit
of libFuzzer.
"""

import sys
from typing import Any, cast

import atheris

with cast("Any", atheris).instrument_imports(include=["vblk.wire"]):
    from tests.support.fuse_requests import exercise

INPUT_MAX = 512


def main() -> None:
    """Run the fuzzer until it finds something or its time is over."""
    fuzzer = cast("Any", atheris)
    fuzzer.Setup([*sys.argv, f"-max_len={INPUT_MAX}"], exercise)
    fuzzer.Fuzz()


if __name__ == "__main__":
    main()
