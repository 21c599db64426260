"""Small by default; `make test-robustness` (ROBUSTNESS=large) has the counts of docs/reliability.md and prints them."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from fork_server import Server
from tiny_model import save as save_tiny

LARGE = os.environ.get("ROBUSTNESS") == "large"
_counts: dict[str, Counter] = {}


@pytest.fixture(scope="session")
def large():
    """Whether the large suite was asked for."""
    return LARGE


@pytest.fixture(scope="session")
def server():
    """The process that forks commands."""
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny model's weights."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny.pth")


@pytest.fixture(scope="session")
def counted():
    """Add to what the summary prints: (what, outcome)."""

    def count(what, outcome):
        _counts.setdefault(what, Counter())[str(outcome)] += 1

    return count


def pytest_terminal_summary(terminalreporter):
    if _counts:
        terminalreporter.section("robustness: what was tried, and how it ended (exit codes)")
        for what, found in _counts.items():
            endings = ", ".join(f"{outcome}: {n}" for outcome, n in sorted(found.items()))
            terminalreporter.line(f"{what}: {sum(found.values())} ({endings})")
