"""A template that is an ordinary Debian with systemd and our package: what its AppVMs keep, and its disposables."""

import json
from collections.abc import Iterator

import pytest

from tests.gui.systemd_guest import build_packages, provide_image
from tests.vm.disposables import DVM, disposable_home, none_is_left
from tests.vm.home import Home, wait_until
from tests.vm.test_disposables import IDENTITY
from tests.vm.test_layers import as_root
from tests.vm.test_resize import GIB, space_inside
from tests.vm.test_restore import ensure_image, restored

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

SYSTEMD = "/usr/lib/systemd/systemd"
TEMPLATE, APP = "plain", "own"
LOOK = f"""{IDENTITY}
import subprocess, sys
run = lambda *words: subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout
states = [open(path).read().rpartition(")")[2].split()[0] for path in glob.glob("/proc/[0-9]*/stat")]
print(json.dumps({{
    "init": os.path.basename(os.readlink("/proc/1/exe")),
    "stopped": states.count("T"),
    "failed": [line.split()[0] for line in run("systemctl", "--failed", "--no-legend", "--plain").splitlines()],
    "journal": run("systemd-run", "--quiet", "--wait", "--pipe", "echo", "a unit runs"),
    "logged": run("sh", "-c", "echo noted | systemd-cat -t test; journalctl --sync; journalctl -qt test -o cat"),
    "name": run("hostnamectl", "hostname").strip(),
}}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Return a home with a template that a user made from a foreign disk, an AppVM of it, and its disposables."""
    image = provide_image(build_packages(tmp_path_factory.mktemp("packages")))
    home = Home()
    try:
        home.ok("crannog", "template", "build", "debian-12")
        home.ok("qvm-create", "-C", "TemplateVM", "--property", "virt_mode=pvh", "--label", "black",
                "--root-copy-from", image, TEMPLATE)  # fmt: skip
        home.ok("qvm-prefs", TEMPLATE, "kernel", home.ok("qvm-prefs", "debian-12", "kernel").strip())
        home.ok("qvm-prefs", TEMPLATE, "qrexec_timeout", "300")
        home.ok("qvm-create", "--template", TEMPLATE, APP)
        with disposable_home(home, restores=True, template=TEMPLATE) as found:
            for vm in (APP, DVM):
                home.ok("qvm-prefs", vm, "qrexec_timeout", "300")
            yield found
            home.run("qvm-kill", APP)
    finally:
        home.close()


def test_an_appvm_keeps_its_home_and_nothing_else(home: Home) -> None:
    home.ok("qvm-start", "--wait", APP)
    assert as_root(home, APP, "cat /proc/sys/kernel/hostname; readlink /proc/1/exe").split() == [APP, SYSTEMD]
    home.ok("qvm-run", APP, "echo mine >kept")
    as_root(home, APP, "echo lost >/etc/lost; echo kept >/usr/local/kept; sync")
    home.ok("qvm-volume", "resize", f"{APP}:private", "3GiB")
    wait_until(lambda: space_inside(home, APP, "/rw") > 2.7 * GIB, "the file system has followed", 60)
    home.ok("qvm-shutdown", "--wait", APP)
    home.ok("qvm-volume", "resize", f"{APP}:private", "4GiB")
    home.ok("qvm-start", "--wait", APP)
    assert as_root(home, APP, "cat /home/user/kept /usr/local/kept; ls /etc/lost 2>/dev/null; true") == "mine\nkept\n"
    wait_until(lambda: space_inside(home, APP, "/rw") > 3.6 * GIB, "the file system is as large as the disk", 60)
    assert as_root(home, APP, "systemctl --failed --no-legend --plain") == ""
    home.ok("qvm-shutdown", "--wait", APP)


def look(home: Home) -> tuple[dict[str, str], dict[str, object]]:
    """Return who a new disposable is, and how it is."""
    done = home.ok("qvm-run", "--user", "root", "--dispvm", "python3 -", stdin=LOOK.encode())
    none_is_left(home)
    who, how = map(json.loads, done.splitlines())
    return who, how


def test_they_are_their_own_and_wide_awake(home: Home) -> None:
    cold = look(home)
    assert not restored(home)
    ensure_image(home)
    before = len(restored(home))
    found = [cold, look(home), look(home)]
    assert len(restored(home)) == before + 2
    for who, how in found:
        assert how == {
            "init": "systemd", "stopped": 0, "failed": cold[1]["failed"], "journal": "a unit runs\n",
            "logged": "noted\n", "name": who["hostname"],
        }  # fmt: skip
        assert who["uuid"].replace("-", "").lower() == who["machine-id"]
    assert all(who["hostname"].startswith("disp") for who, _ in found)
    for key in ("machine-id", "hostname", "uuid", "boot", "random", "seed"):
        assert len({who[key] for who, _ in found}) == 3, key
