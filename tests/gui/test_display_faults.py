"""Displays of real VMs where something is missing or silent: the VM runs, and the user is told."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from tests.gui.bounds import SCREEN_MEMORY, list_clients, measure
from tests.gui.desktop import Desktop, wait_for
from tests.processes import is_alive, list_all, list_below
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


class Programs:
    """A folder with the programs of this host, of which some can be missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for place in ("/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
            for name in os.listdir(place):
                if not (folder / name).is_symlink():
                    (folder / name).symlink_to(f"{place}/{name}")

    @contextlib.contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Have a program missing for a while."""
        target = os.readlink(self.folder / name)
        (self.folder / name).unlink()
        assert shutil.which(name, path=str(self.folder)) is None
        try:
            yield
        finally:
            (self.folder / name).symlink_to(target)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Return the programs that the home's daemon finds."""
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def home(desktop: Desktop, programs: Programs) -> Iterator[Home]:
    """Return a home whose daemon shows VMs on the desktop."""
    found = Home()
    found.env |= {"DISPLAY": desktop.display, "PATH": str(programs.folder)}
    try:
        yield found
    finally:
        found.close()
        desktop.wait_for_none()


def start(home: Home, name: str) -> str:
    """Start a VM; return what is said of that."""
    done = home.run("qvm-start", "-v", name)
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).decode()


def refuse_to_show(home: Home, name: str) -> str:
    """Return why a VM cannot be shown."""
    done = home.run("crannog", "show", name)
    assert done.returncode == 16, done
    return done.stderr.decode()


def doctor(home: Home) -> str:
    """Return what crannog doctor says."""
    return home.run("crannog", "doctor").stdout.decode()


def test_a_host_without_the_programs(desktop: Desktop, home: Home, programs: Programs) -> None:
    name, title = "bare", "[bare] emulated screen"
    home.ok("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "--label", "red", name)
    home.ok("qvm-prefs", name, "memory", "64")
    with programs.without("bwrap"):
        told = start(home, name)
        assert "not shown: screens of VMs cannot be shown: install bubblewrap (apt-get install bubblewrap)" in told
        assert home.state(name) == "Running"
        assert "bubblewrap" in refuse_to_show(home, name)
        assert "to show the screens of VMs: apt-get install bubblewrap" in doctor(home)
        assert not desktop.titles()
    home.ok("crannog", "show", name)
    desktop.wait_for_window(title)
    home.ok("qvm-kill", name)
    desktop.wait_for_none()


def test_a_host_without_xpra_shows_screens(desktop: Desktop, home: Home, programs: Programs) -> None:
    name = "bare"
    home.ok("qvm-features", name, "gui", "1")
    with programs.without("xpra"):
        told = start(home, name)
        assert "not shown: windows of VMs cannot be shown: install xpra (apt-get install xpra)" in told
        desktop.wait_for_window("[bare] emulated screen")
        assert "to show the windows of VMs: apt-get install xpra" in doctor(home)
        assert "to show the screens" not in doctor(home)
    home.ok("qvm-kill", name)
    home.ok("qvm-features", "--unset", name, "gui")
    desktop.wait_for_none()


def test_a_vm_that_is_shown_elsewhere_says_so(desktop: Desktop, home: Home) -> None:
    home.ok("qvm-create", "--class", "StandaloneVM", "--label", "red", "sys-gui")
    home.ok("qvm-prefs", "bare", "guivm", "sys-gui")
    reason = "its guivm is sys-gui, and of all VMs dom0 alone can show others yet"
    assert f"displays ready (not shown: {reason}" in start(home, "bare")
    assert f"bare cannot be shown: {reason}" in refuse_to_show(home, "bare")
    assert not desktop.titles()
    home.ok("qvm-prefs", "bare", "guivm", "dom0")
    desktop.wait_for_window("[bare] emulated screen")
    home.ok("qvm-prefs", "bare", "guivm", "")
    desktop.wait_for_none()
    assert "its guivm is none" in refuse_to_show(home, "bare")
    home.ok("qvm-kill", "bare")


@pytest.mark.slow
def test_an_agent_that_is_announced_and_never_connects(desktop: Desktop, home: Home, programs: Programs) -> None:
    name, title = "mute", "[mute] emulated screen"
    home.ok("crannog", "template", "build", "debian-12", "--virt-mode", "hvm")
    home.ok("qvm-create", "--template", "debian-12-hvm", "--label", "red", name)
    home.ok("qvm-start", "--wait", name)
    window = desktop.wait_for_window(title)
    folder = "/etc/qubes-rpc"  # the guest says that it has a display, which takes the call and never says a word
    says = f"mkdir -p {folder}; cd {folder}; for i in crannog.Display crannog.Display+wait; do rm -f $i; "
    says += "printf '#!/bin/sh\\ncase $0 in *wait) exit 0; esac; exec sleep 1000\\n' >$i; chmod 755 $i; done; "
    says += "qubesdb-write /qubes-tools/gui 1; exec qrexec-client-vm dom0 qubes.NotifyTools"
    with programs.without("xpra"):
        home.ok("qvm-run", "--user", "root", name, says)
        assert home.ok("qvm-features", name, "gui").strip() == "1"
        log = Path(Paths(home.path).daemon_log)
        remark = "mute is not shown as it should be: windows of VMs cannot be shown: install xpra"
        wait_for("a word of what is missing", lambda: remark in log.read_text())
        home.ok("crannog", "show", name)
        assert desktop.titles() == {window: title}
        assert not find_forwarder(home), "nothing is started in vain"
        assert log.read_text().count(remark) == 1
    home.ok("crannog", "show", name)
    forwarder = wait_for("a forwarder", lambda: find_forwarder(home))
    client = wait_for("a client", lambda: find_client(forwarder, but_not=0), 60)
    wait_for("its end, after 30 s of silence", lambda: expect_bounds(forwarder) and not is_alive(client), 60)
    wait_for("the next client", lambda: expect_bounds(forwarder) and find_client(forwarder, but_not=client), 60)
    assert desktop.titles() == {window: title}, "the screen stays"
    assert find_forwarder(home) == forwarder
    home.ok("qvm-kill", name)
    desktop.wait_for_none()
    wait_for("the end of the forwarder", lambda: not is_alive(forwarder))


def find_forwarder(home: Home) -> int:
    """Return the one forwarder of the home; 0 when there is none."""
    running = list_all().items()
    found = [pid for pid, words in running if "crannog.display.forwarder" in words and home.path in " ".join(words)]
    assert len(found) <= 1
    return found[0] if found else 0


def find_client(forwarder: int, but_not: int) -> int:
    """Return the program in the forwarder's sandbox, if it is not that one."""
    return next((pid for pid in list_clients(forwarder) if pid != but_not), 0)


def expect_bounds(forwarder: int) -> bool:
    """Expect that a forwarder and what it started are few and small."""
    assert len(list_below(forwarder)) <= 8
    assert 0 < measure(forwarder, "VmRSS") < SCREEN_MEMORY
    return True
