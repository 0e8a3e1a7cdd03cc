"""Text out of the clipboard of a real guest, and back into it, with the tools as a user runs them."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.cli.clipboard_focus import find_focused_vm
from crannog.cli.clipboard_store import Clipboard
from crannog.config import Paths
from crannog.errors import DisplayError
from tests.gui.desktop import Desktop, wait_for
from tests.gui.local_guest import NAME, Forwarder, LocalGuest
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

TEXT = "Grüße\n\t'quoted' $HOME"
XCLIP = "xclip -selection clipboard -target UTF8_STRING"


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Return a home in which the VM `work` runs, with a graphical session, and `vault` does not."""
    found = Home()
    try:
        found.ok("crannog", "template", "build", "debian-12-gui")
        for vm in ("work", "vault"):
            found.ok("qvm-create", "--template", "debian-12-gui", "--label", "red", vm)
        found.ok("qvm-prefs", "work", "memory", "1000")
        found.ok("qvm-start", "--wait", "work")
        found.ok("qvm-run", "--service", "work", "qubes.WaitForSession", stdin=b"user\n")
        yield found
    finally:
        found.run("qvm-kill", "work")
        found.close()


def fill(home: Home, text: bytes) -> None:
    """Have a program of the guest own its clipboard."""
    home.ok("qvm-run", "work", f"setsid {XCLIP} -in >/dev/null 2>&1", stdin=text)


def read(home: Home) -> bytes:
    """Return what programs of the guest find in its clipboard."""
    return home.run("qvm-run", "work", f"{XCLIP} -out").stdout


def refuse(home: Home, code: int, action: str) -> str:
    """Take a step with the VM `work` that must end with `code` and one complaint; return the complaint."""
    done = home.run("crannog", "clipboard", action, "work")
    complaint = done.stderr.decode()
    assert (done.returncode, done.stdout, complaint.count("\n")) == (code, b"", 1), complaint
    assert complaint.startswith("crannog clipboard: ")
    return complaint


def test_nothing_is_copied_where_there_is_none(home: Home) -> None:
    assert "there is no text in the clipboard" in refuse(home, 1, "copy")
    assert home.ok("crannog", "clipboard", "show") == "the global clipboard is empty\n"


def test_two_steps_bring_text_from_clipboard_to_clipboard(home: Home) -> None:
    fill(home, TEXT.encode())
    size = len(TEXT.encode())
    assert home.ok("crannog", "clipboard", "copy", "work").startswith(f"{size} bytes of work ")
    assert Path(Paths(home.path).clipboard).stat().st_mode & 0o777 == 0o600
    fill(home, b"something else")
    shown = home.ok("crannog", "clipboard", "show", "--content")
    assert shown.endswith(f" s ago\n{TEXT}\n")
    home.ok("crannog", "clipboard", "paste", "work")
    assert read(home) == TEXT.encode(), "it is served when the call has ended"
    assert home.ok("crannog", "clipboard", "show") == "the global clipboard is empty\n"
    refuse(home, 3, "paste")


def test_the_longest_text_passes_and_a_longer_one_is_refused(home: Home) -> None:
    longest = b"x" * 65536
    fill(home, longest)
    home.ok("crannog", "clipboard", "copy", "work")
    fill(home, longest + b"y")
    assert "longer than 65536 bytes" in refuse(home, 1, "copy")
    home.ok("crannog", "clipboard", "paste", "work")
    assert read(home) == longest


def test_policy_decides_between_vms(home: Home) -> None:
    paths = Paths(home.path)
    uuid = home.ok("qvm-ls", "--raw-data", "--fields", "uuid", "vault").strip()
    fill(home, b"before")
    Clipboard(paths).save("vault", uuid, b"of the vault")
    refuse(home, 13, "paste")  # the rule says ask, and nobody is there to ask
    assert read(home) == b"before"
    (folder,) = paths.policy_folders
    Path(folder).mkdir(exist_ok=True)
    (Path(folder) / "30-user.policy").write_text("qubes.ClipboardPaste * vault work allow\n")
    wait_for("the new rule", lambda: home.run("crannog", "clipboard", "paste", "work").returncode == 0)
    assert read(home) == b"of the vault"
    log = home.ok("crannog", "policy", "log", "-n", "1")
    assert "allow vault -> work qubes.ClipboardPaste" in log


def test_the_user_is_asked(home: Home, tmp_path: Path) -> None:
    paths = Paths(home.path)
    (Path(paths.policy_folders[0]) / "30-user.policy").unlink(missing_ok=True)
    program = tmp_path / "asks"
    program.write_text(f"#!/bin/sh\ncat >{tmp_path}/question\nprintf allow:work\n")
    program.chmod(0o755)
    uuid = home.ok("qvm-ls", "--raw-data", "--fields", "uuid", "vault").strip()
    Clipboard(paths).save("vault", uuid, b"after a question")
    agent = home.popen("crannog", "policy", "agent", "--command", str(program), stdout=subprocess.DEVNULL)
    try:
        wait_for("the program that asks", lambda: Path(paths.policy_agent_socket).exists())
        home.ok("crannog", "clipboard", "paste", "work")
    finally:
        agent.terminate()
        agent.wait(60)
    assert read(home) == b"after a question"
    assert json.loads((tmp_path / "question").read_text())["source"] == "vault"


def test_the_services_are_for_the_host_alone(home: Home) -> None:
    command = "QREXEC_REMOTE_DOMAIN=vault /etc/qubes-rpc/qubes.ClipboardCopy"
    done = home.run("qvm-run", "work", command)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the clipboard is not for 'vault'" in done.stderr


def test_the_focused_window_says_whose_it_is(desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest) -> None:
    assert forwarder.process.poll() is None
    pid = local_guest.spawn("exec xterm -class crannog -name vault -T '[vault] x' -e sh")
    window = desktop.wait_for_window("[work] [vault] x")
    desktop.run("xdotool", "windowactivate", "--sync", str(window))
    assert find_focused_vm(desktop.environment) == NAME
    os.kill(pid, signal.SIGKILL)
    desktop.wait_for_none()
    with pytest.raises(DisplayError, match="not one of a VM"):
        find_focused_vm(desktop.environment)


def test_a_guest_without_a_session_says_so(home: Home) -> None:
    home.ok("qvm-run", "--user", "root", "work", "mv /run/crannog/session.user /run/crannog/away")
    assert "no session of 'user' is ready" in refuse(home, 1, "copy")
    home.ok("qvm-run", "--user", "root", "work", "mv /run/crannog/away /run/crannog/session.user")
