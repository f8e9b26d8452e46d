"""The fuzzer of the QMP session: `make fuzz`, or by hand from the repository's root:

    python -m tests.fuzz.fuzz_qmp tests/fuzz/corpus/qmp -max_total_time=600 -timeout=20 -rss_limit_mb=700

Every argument is libFuzzer's. A crash is anything but a `QmpError` or a `BlockError`,
or a limit of libFuzzer.
"""

import sys
from typing import Any, cast

import atheris

with cast("Any", atheris).instrument_imports(include=["vblk.wire.qmp", "vblk.monitor", "vblk.options"]):
    from tests.support.qmp_requests import exercise

INPUT_MAX = 2048


def main() -> None:
    """Run the fuzzer until it finds something or its time is over."""
    fuzzer = cast("Any", atheris)
    fuzzer.Setup([*sys.argv, f"-max_len={INPUT_MAX}"], exercise)
    fuzzer.Fuzz()


if __name__ == "__main__":
    main()
