"""A few points of each series of faults; `scripts/faults` has all of them, on each libvirt."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.page import render
from tests.faults.results import URIS, Found, Result, Rounds, load
from tests.faults.series import SERIES
from tests.faults.sites import Site, open_site

PAGE = Path(__file__).parents[2] / "docs/reliability.md"


EMBED, SESSION, SYSTEM = URIS
QUICK = {
    EMBED: ("qemu", "crannogd", "refusals"),
    SESSION: ("libvirtd",),
    SYSTEM: ("crannogd",),
}
"""What depends on whose libvirt it is: the end of libvirtd, what a daemon that dies leaves to it, and strangers.

That disposables leave nothing is shown in test_disposables.py and test_restore.py, too.
"""

CASES = [
    pytest.param(uri, name, marks=() if name in QUICK[uri] else pytest.mark.slow) for uri in URIS for name in SERIES
]


@pytest.fixture(scope="module")
def find_site() -> Iterator[Callable[[str], Site]]:
    """Return a function that gives the site on a libvirt: the one that is there already, or a new one in its place."""
    with contextlib.ExitStack() as stack:
        sites: dict[str, Site] = {}

        def find(uri: str) -> Site:
            if uri not in sites:
                sites.clear()
                stack.close()
                sites[uri] = stack.enter_context(open_site(uri))
            return sites[uri]

        yield find


@pytest.mark.vm
@pytest.mark.parametrize(("uri", "name"), CASES)
def test_nothing_goes_wrong(find_site: Callable[[str], Site], uri: str, name: str) -> None:
    site, series = find_site(uri), SERIES[name]
    results = series.run(site, series.few, print)
    # The embedded driver has no libvirtd that could be killed.
    assert results or (name == "libvirtd" and site.libvirtd is None)
    assert [result for result in results if not result.is_good] == []


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == render(load())


def test_the_page_counts_and_names_failures() -> None:
    good, bad = Result("at once", "done", "Halted", (), 0.5), Result("later", "", "Paused", ("domain work",), 2.5)
    found: Found = {
        "qemu": {URIS[0]: (good, good), URIS[1]: (good, bad)},
        "rounds": {URIS[2]: (Rounds(500, 9000, ("reader: no answer",), 70.0),)},
    }
    page = render(found)
    assert "| `qemu:///embed` | 2 | 0 | 2 | 0 | 0.50 | 0.50 |" in page
    assert "| `qemu:///session` | 2 | 0 | 1 | 1 | 1.50 | 2.50 |" in page
    assert "- `qemu:///session`, later: domain work" in page
    assert "| `qemu:///system` | 500 | 9000 | 1 | 70 |" in page
