"""Disposables with windows: ready in advance, and restored from the memory of one whose session ran already."""

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from tests.gui.desktop import Desktop, wait_for
from tests.gui.homes import GRAPHICAL, home_with
from tests.vm.disposables import DVM, disposables, image_of, none_is_left, refill_later, want
from tests.vm.home import Home, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

IMAGE_SECONDS = 240


@pytest.fixture(scope="module")
def home(desktop: Desktop) -> Iterator[Home]:
    """Return a home whose VMs are shown, with a disposable template that has a graphical session."""
    words, template = ("--template", "debian-12-gui", "--label", "red"), ("debian-12-gui",)
    with home_with(desktop, DVM, *words, memory=GRAPHICAL, template=template, is_shown=True) as found:
        found.ok("qvm-prefs", DVM, "template_for_dispvms", "True")
        refill_later(found, never=True)
        yield found
        want(found, 0)


def test_one_that_is_ready_has_its_session(home: Home) -> None:
    want(home, 1)
    wait_until(lambda: bool(image_of(home)), "there is an image", IMAGE_SECONDS)
    began = time.monotonic()
    said = home.ok("qvm-run", f"--dispvm={DVM}", "--", "ls", "/run/crannog/session.user")
    assert said == "/run/crannog/session.user\n"
    sys.stderr.write(f"used {time.monotonic() - began:.2f} s after it was asked for\n")


def test_windows_of_one_that_was_restored(home: Home, desktop: Desktop) -> None:
    """What ran when the memory was saved goes on: the session, its server, and the way to the desktop."""
    want(home, 0)
    tool = home.popen("qvm-run", f"--dispvm={DVM}", "--", "xterm", "-fn", "10x20", "-T", "hello", "-e", "sh")
    try:
        wait_until(lambda: bool(disposables(home)), "there is a disposable", IMAGE_SECONDS)
        (vm,) = disposables(home)
        window = desktop.wait_for_window(f"[{vm}] hello", 120)
        with open(f"{home.path}/log/crannogd.log") as log:
            assert f"{vm}: identity is its own" in log.read(), "it was started cold"
        desktop.type(window, "hostname >/tmp/name")
        wait_for("what was typed", lambda: home.run("qvm-run", vm, "cat /tmp/name").stdout.decode() == f"{vm}\n")
        desktop.type(window, "exit")
        assert tool.wait(60) == 0
    finally:
        if tool.poll() is None:
            tool.send_signal(signal.SIGINT)
            tool.wait(60)
    none_is_left(home)
    desktop.wait_for_none()
