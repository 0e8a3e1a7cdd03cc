"""A Debian with systemd, in which the packages were installed, shows its windows on the host."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status
from crannog.config import Paths
from tests.gui.desktop import Desktop, wait_for
from tests.gui.homes import GRAPHICAL, home_with
from tests.gui.local_guest import NAME, Forwarder
from tests.gui.systemd_guest import build_packages, provide_image
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(desktop: Desktop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Return a home in which the VM `work` runs, as a user makes it from a foreign disk with a kernel of the host."""
    image = provide_image(build_packages(tmp_path_factory.mktemp("packages")))
    words = ("-C", "StandaloneVM", "--property", "virt_mode=pvh", "--label", "red", "--root-copy-from", image)
    with home_with(desktop, NAME, *words, memory=GRAPHICAL, template=("debian-12",)) as found:
        found.ok("qvm-prefs", NAME, "kernel", found.ok("qvm-prefs", "debian-12", "kernel").strip())
        found.ok("qvm-start", NAME)
        wait_for("the agent", lambda: read_status(Paths(found.path).rpc_socket(NAME), 5)["agent"] == "ready", 180)
        yield found


@pytest.fixture(scope="module")
def forwarder(desktop: Desktop, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    """Return a forwarder that shows the guest's windows."""
    folder: Path = tmp_path_factory.mktemp("forwarder")
    found = Forwarder(desktop, Paths(home.path).rpc_socket(NAME), folder)
    try:
        found.wait_for("connected")
        yield found
    finally:
        found.close()


def as_root(home: Home, command: str) -> str:
    """Run a command in the guest; return what it prints, whether it succeeds or not."""
    return home.run("qvm-run", "--user", "root", NAME, command).stdout.decode()


def test_a_window_is_on_the_desktop(desktop: Desktop, home: Home, forwarder: Forwarder) -> None:
    assert forwarder.process.poll() is None
    home.ok("qvm-run", NAME, "xterm -T shell </dev/null >/dev/null 2>&1 & echo started")
    window = desktop.wait_for_window("[work] shell", 60)
    desktop.type(window, "id -un >/tmp/typed")
    wait_for("the typed line", lambda: home.run("qvm-run", NAME, "cat /tmp/typed").stdout == b"user\n")


def test_the_units_are_enabled_and_active(home: Home, forwarder: Forwarder) -> None:
    assert forwarder.process.poll() is None
    for unit in ("crannog-agent.service", "crannog-gui.service"):
        assert as_root(home, f"systemctl is-enabled {unit}; systemctl is-active {unit}") == "enabled\nactive\n"
    assert as_root(home, "readlink /proc/1/exe").strip().endswith("systemd")
    failed = as_root(home, "systemctl --failed --no-legend --plain | cut -d' ' -f1")
    assert not [unit for unit in failed.split() if unit.startswith(("crannog", "xpra"))], failed


def test_nobody_listens_on_tcp(home: Home, forwarder: Forwarder) -> None:
    assert forwarder.process.poll() is None
    assert as_root(home, "test -e /usr/bin/xpra && echo there") == "there\n"
    listening = as_root(home, "ss --tcp --listening --no-header --numeric --processes")
    assert "xpra" not in listening
    assert "14500" not in listening
    assert as_root(home, "systemctl start xpra.socket xpra.service; systemctl is-active xpra.socket") == "inactive\n"
    assert "14500" not in as_root(home, "ss --tcp --listening --no-header --numeric")


def test_the_session_comes_again(desktop: Desktop, home: Home, forwarder: Forwarder) -> None:
    as_root(home, "systemctl kill --signal=KILL crannog-gui.service")
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")
    home.ok("qvm-run", NAME, "xterm -T again </dev/null >/dev/null 2>&1 & echo started")
    desktop.wait_for_window("[work] again", 60)


def test_a_stopped_session_leaves_nothing(home: Home, forwarder: Forwarder) -> None:
    assert forwarder.process.poll() is None
    as_root(home, "systemctl stop crannog-gui.service")
    assert as_root(home, "pgrep --count 'Xvfb|xpra'") == "0\n"
    assert as_root(home, "ls /run/crannog/session.user") == ""
