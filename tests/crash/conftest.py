"""Says at the end how much the crash tests explored."""

import pytest

from tests.support.crash import COUNT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of crash states."""
    if COUNT.states:
        terminalreporter.write_line(
            f"crash states explored: {COUNT.states}, and {COUNT.crashed_again} of crashed recoveries, "
            f"in {COUNT.runs} runs at {COUNT.instants} instants, {COUNT.exhausted} of them exhaustively; "
            f"{COUNT.by_others} compared through QEMU"
        )
