"""A few points of each series of faults, on each libvirt; `scripts/faults` has all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.page import render
from tests.faults.results import URIS, Found, Result, Rounds, load
from tests.faults.series import SERIES
from tests.faults.sites import Site, open_site

PAGE = Path(__file__).parents[2] / "docs/reliability.md"


@pytest.fixture(scope="module", params=URIS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with open_site(request.param) as site:
        yield site


@pytest.mark.vm
@pytest.mark.parametrize("name", SERIES)
def test_nothing_goes_wrong(site: Site, name: str) -> None:
    series = SERIES[name]
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
