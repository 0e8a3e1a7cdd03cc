"""One home with both templates is shared by the tests of this folder; whoever breaks things makes another."""

from collections.abc import Iterator

import pytest

from tests.vm.home import Home


@pytest.fixture(scope="session")
def shared_home() -> Iterator[Home]:
    """Return a home with the templates debian-12 and debian-12-hvm."""
    home = Home()
    home.ok("crannog", "template", "build", "debian-12")
    home.ok("crannog", "template", "build", "debian-12", "--virt-mode", "hvm")
    yield home
    home.close()


@pytest.fixture
def empty_home() -> Iterator[Home]:
    """Return a new home without VMs."""
    home = Home()
    yield home
    home.close()


@pytest.fixture
def work(shared_home: Home) -> Iterator[str]:
    """Return the name of a halted AppVM that is removed afterwards."""
    shared_home.ok("qvm-create", "--template", "debian-12", "work")
    yield "work"
    shared_home.run("qvm-kill", "work")
    shared_home.ok("qvm-remove", "--force", "work")


@pytest.fixture(scope="session")
def runner(shared_home: Home) -> str:
    """Return the name of a halted AppVM; it ends with the home."""
    shared_home.ok("qvm-create", "--template", "debian-12", "runner")
    return "runner"


@pytest.fixture(scope="module")
def running(shared_home: Home, runner: str) -> str:
    """Return the name of a running AppVM that modules share: whoever ends it has the next one boot it again."""
    shared_home.ok("qvm-start", "--wait", "--skip-if-running", runner)
    return runner
