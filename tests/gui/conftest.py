"""One desktop for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gui.desktop import Desktop, open_desktop
from tests.gui.local_guest import Forwarder, LocalGuest, settings_taken_back


@pytest.fixture(scope="session")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    """Return a desktop without windows."""
    with open_desktop(str(tmp_path_factory.mktemp("desktop") / "log")) as found:
        yield found


@pytest.fixture(scope="module")
def local_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGuest]:
    """Return a guest without a VM."""
    with settings_taken_back():
        guest = LocalGuest(tmp_path_factory.mktemp("guest"))
        try:
            guest.start()
            yield guest
        finally:
            guest.close()


@pytest.fixture
def forwarder(desktop: Desktop, local_guest: LocalGuest, tmp_path: Path) -> Iterator[Forwarder]:
    """Return a forwarder that shows the local guest's windows."""
    found = Forwarder(desktop, local_guest.world.rpc_socket, tmp_path)
    try:
        found.wait_for("connected")
        yield found
    finally:
        found.close()
        desktop.wait_for_none()
