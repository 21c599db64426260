"""Prints what was measured."""

from __future__ import annotations

import sys


def pytest_terminal_summary(terminalreporter):
    """The table, if any program ran."""
    if "clients.table" in sys.modules and terminalreporter.stats.get("passed"):
        from clients.table import lines

        terminalreporter.section("programs on our packs")
        for line in lines():
            terminalreporter.write_line(line)
