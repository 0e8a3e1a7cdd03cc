"""These tests run as root in the dom0 that scripts/xen-lab makes (docs/xen.md), and leave nothing there.

What each of them found, and how long it took, is also printed as a line for scripts/test-xen.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.xen.home import XenHome, list_remains

MARK = "XEN-RESULT "
"""Begins a line that scripts/test-xen reads."""


@pytest.fixture(scope="session", autouse=True)
def _in_the_lab() -> None:
    """Refuse to work in anybody's real dom0."""
    if os.environ.get("CRANNOG_LAB") != "xen-lab":
        pytest.exit("tests/xen runs in a machine of its own: use 'make test-xen'", returncode=2)


@pytest.fixture(scope="session")
def xen_home(_in_the_lab: None) -> Iterator[XenHome]:
    """Return a home with the templates debian-12 and debian-12-hvm; in the end nothing of it may be left in dom0."""
    before = list_remains()
    home = XenHome()
    home.install()
    yield home
    home.close()
    assert list_remains() == before, "the tests left something behind"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Print the outcome of a test when it is known, and what the test says that it compared."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when != "call" and not report.failed:
        return
    result = {
        "test": item.nodeid.partition("tests/xen/")[2],
        "outcome": report.outcome,
        "seconds": round(report.duration, 1),
        "facts": [text for name, text in item.user_properties if name == "fact"],
    }
    if report.failed:
        # Told at once: the rest of such a run takes minutes.
        lines = [line[1:].strip() for line in str(report.longrepr).splitlines() if line.startswith("E ")]
        result["facts"] += [f"failed: {' '.join(lines)}"]
    terminal: Any = item.config.pluginmanager.get_plugin("terminalreporter")
    terminal.write_line("")
    terminal.write_line(MARK + json.dumps(result))
