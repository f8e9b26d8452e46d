"""Says at the end how much the crash tests explored, in all the processes that ran them."""

from dataclasses import asdict
from typing import Any

import pytest

from tests.support.crash import COUNT, SEED

_KEY = "crash states"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the process that started this one know what it counted."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_KEY] = asdict(COUNT)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what another process counted."""
    for name, number in getattr(node, "workeroutput", {}).get(_KEY, {}).items():
        setattr(COUNT, name, getattr(COUNT, name) + number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of crash states."""
    if not COUNT.states:
        return
    terminalreporter.write_line(
        f"crash states explored: {COUNT.states}, and {COUNT.crashed_again} of crashed recoveries, "
        f"in {COUNT.runs} runs at {COUNT.instants} instants, {COUNT.exhausted} of them exhaustively; "
        f"{COUNT.by_others} compared through QEMU (seed {SEED})"
    )
