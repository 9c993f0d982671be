"""Reports what is larger than its target, after the architecture tests have run."""

import pytest

from tests.architecture.sizes import outliers


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = outliers()
    if found:
        terminalreporter.write_line(f"past its target size: {len(found)}; the first of them:")
        for size in found[:8]:
            terminalreporter.write_line(f"  {size}")
