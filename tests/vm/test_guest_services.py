"""The services that every guest has, as its host calls them."""

import pytest

from tests.vm.home import Home

pytestmark = pytest.mark.vm


def serve(home: Home, vm: str, service: str, data: bytes = b"") -> tuple[str, str, int]:
    done = home.run("qvm-run", "--service", vm, service, stdin=data)
    return done.stdout.decode(), done.stderr.decode(), done.returncode


def test_commands(shared_home: Home, running: str) -> None:
    assert serve(shared_home, running, "qubes.VMShell", b"id -un; exit 3\n") == ("user\n", "", 3)
    assert serve(shared_home, running, "qubes.VMExec+printf+-25s-7C+a-20b+--c") == ("a b|-c|", "", 0)
    assert serve(shared_home, running, "qubes.NoSuch")[2] == 127


def test_the_clock_and_the_disks_are_roots(shared_home: Home, running: str) -> None:
    assert serve(shared_home, running, "qubes.SetDateTime", b"2031-02-03T04:05:06+00:00\n") == ("", "", 0)
    assert shared_home.ok("qvm-run", running, "date -u +%F") == "2031-02-03\n"
    assert serve(shared_home, running, "qubes.SetDateTime", b"tomorrow\n")[2] == 1
    assert serve(shared_home, running, "qubes.ResizeDisk", b"private\n") == ("", "", 0)


def test_what_is_installed_belongs_to_root_and_cannot_be_changed(shared_home: Home, running: str) -> None:
    folders = "/usr/lib/crannog /usr/lib/qubes /etc/qubes /etc/qubes-rpc /run/qubes /usr/bin/qvm-* /usr/bin/qrexec-*"
    command = f"find {folders} ! -type l \\( ! -user root -o -perm /022 \\) -ls"
    found = shared_home.ok("qvm-run", running, command)
    assert [line for line in found.splitlines() if "qrexec-agent" not in line] == []


def test_sessions(shared_home: Home, running: str) -> None:
    shared_home.ok("qvm-run", "--user", "root", running, "touch /run/crannog/session.user")
    assert serve(shared_home, running, "qubes.WaitForSession", b"user\n") == ("", "", 0)
