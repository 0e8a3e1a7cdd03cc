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


def test_the_gui_mode_is_for_the_session_to_read(shared_home: Home, running: str) -> None:
    assert serve(shared_home, running, "qubes.SetGuiMode", b"FULLSCREEN") == ("", "", 0)
    assert shared_home.ok("qvm-run", running, "cat /run/qubes/gui-mode") == "FULLSCREEN\n"
    assert serve(shared_home, running, "qubes.SetGuiMode", b"WINDOWED")[2] == 1
    assert shared_home.run("qvm-run", running, "echo SEAMLESS > /run/qubes/gui-mode").returncode != 0
    assert shared_home.ok("qvm-run", running, "cat /run/qubes/gui-mode") == "FULLSCREEN\n"


def test_an_url_is_opened_in_the_session(shared_home: Home, running: str) -> None:
    home = shared_home
    script = "printf '#!/bin/sh\\nid -un; echo \"$1\"\\n' > /usr/local/bin/xdg-open; chmod +x /usr/local/bin/xdg-open"
    home.ok("qvm-run", "--user", "root", running, f"touch /run/crannog/session.user; {script}")
    url = b"https://example.org/?a=b&c"
    assert serve(home, running, "qubes.OpenURL", url) == ("user\nhttps://example.org/?a=b&c\n", "", 0)
    assert serve(home, running, "qubes.OpenURL", b"file:///etc/passwd")[2] == 1
    home.ok("qvm-run", "--user", "root", running, "rm /usr/local/bin/xdg-open")
