"""What guests' tools announce, with real guests: it needs no setting that a user touches (B13)."""

import glob
from collections.abc import Iterator

import pytest

from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm
KEPT = b"0\0"
"""The Admin API's answer that has nothing to say."""


def features(home: Home, vm: str) -> dict[str, str]:
    """Return a VM's own features."""
    lines = home.ok("qvm-features", vm).splitlines()
    return {name: value.strip() for name, _, value in (line.partition(" ") for line in lines)}


def last_step(home: Home, vm: str) -> str:
    """Return the last step of the VM's next start."""
    return home.ok("qvm-start", "--dry-run", vm).splitlines()[-1].split()[0]


def announce(home: Home, vm: str, **entries: str) -> bytes:
    """Have a guest's root write what its tools are, and say so to the host; return what that answers."""
    writes = [f"qubesdb-write /qubes-tools/{name.replace('_', '-')} '{value}'" for name, value in entries.items()]
    command = "; ".join([*writes, "exec qrexec-client-vm dom0 qubes.NotifyTools"])
    done = home.run("qvm-run", "--user", "root", vm, command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def count_refusals(home: Home, vm: str) -> int:
    """Return how many announcements of a VM the log says were refused."""
    with open(f"{home.path}/log/crannogd.log", encoding="utf-8") as file:
        return file.read().count(f" {vm}: what its tools announced is refused, nothing is changed: ")


@pytest.fixture(scope="module")
def bare(shared_home: Home) -> Iterator[str]:
    """Return the name of an HVM that boots its own disk; nothing is known of what is on it."""
    home = shared_home
    image = glob.glob(f"{home.path}/pools/vm-pool/debian-12-hvm-*/root.*.img")[-1]
    home.ok("qvm-create", "-C", "StandaloneVM", "--property", "virt_mode=hvm", "--root-copy-from", image, "bare")
    home.ok("qvm-features", "bare", "virtio-disk", "1")  # a matter of the hardware: its initramfs knows no other disks
    yield "bare"
    home.run("qvm-kill", "bare")
    home.ok("qvm-remove", "--force", "bare")


def test_a_bare_hvm_becomes_a_full_one_by_itself(shared_home: Home, bare: str) -> None:
    home = shared_home
    assert features(home, bare) == {"virtio-disk": "1"}
    assert last_step(home, bare) != "wait", "nobody waits for an agent that nobody knows of"
    home.ok("qvm-start", bare)
    wait_until(lambda: "qrexec" in features(home, bare), "its tools have announced themselves", timeout=90)
    assert features(home, bare) == {"virtio-disk": "1", "qrexec": "1", "gui": "", "os": "Linux"}
    assert home.ok("qvm-run", "--no-autostart", bare, "id -un") == "user\n"
    home.ok("qvm-shutdown", "--wait", bare)
    assert last_step(home, bare) == "wait"
    home.ok("qvm-start", bare)
    assert home.ok("qvm-run", "--no-autostart", bare, "echo at once") == "at once\n"


def test_tools_switch_components_and_name_a_user(shared_home: Home, bare: str) -> None:
    home = shared_home
    assert announce(home, bare, gui="1", default_user="root") == KEPT
    assert features(home, bare)["gui"] == "1"
    assert home.ok("qvm-prefs", bare, "default_user") == "root\n"
    assert announce(home, bare, gui="0", qrexec="0", os="Plan 9", default_user="user") == KEPT
    assert features(home, bare) == {"virtio-disk": "1", "qrexec": "", "gui": "", "os": "Plan 9"}
    assert home.ok("qvm-prefs", bare, "default_user") == "user\n"
    assert announce(home, bare, qrexec="1", os="Linux") == KEPT
    assert features(home, bare) == {"virtio-disk": "1", "qrexec": "1", "gui": "", "os": "Linux"}


NONSENSE = [
    {"os": "\x1b[31mLinux"},
    {"os": "x" * 65},
    {"qrexec": "maybe"},
    {"gui": "2"},
    {"version": ""},
    {"default_user": "root; reboot"},
]


@pytest.mark.parametrize("entries", NONSENSE, ids="".join)
def test_nonsense_is_refused_and_logged_and_changes_nothing(
    shared_home: Home, bare: str, entries: dict[str, str]
) -> None:
    home = shared_home
    before = features(home, bare), home.ok("qvm-prefs", bare, "default_user")
    sound = home.ok("qvm-run", "--user", "root", bare, "qubesdb-multiread /qubes-tools/")
    refusals = count_refusals(home, bare)
    assert announce(home, bare, **entries).startswith(b"2\0ProtocolError\0ProtocolError\0the guest")
    assert (features(home, bare), home.ok("qvm-prefs", bare, "default_user")) == before
    assert count_refusals(home, bare) == refusals + 1
    lines = (line.split(" = ", 1) for line in sound.splitlines())
    known = {path.removeprefix("/qubes-tools/").replace("-", "_"): value for path, value in lines}
    assert announce(home, bare, **known) == KEPT


def test_a_template_is_not_changed_by_what_starts_from_it(shared_home: Home, work: str) -> None:
    home = shared_home
    template = features(home, "debian-12")
    home.ok("qvm-start", "--wait", work)
    assert home.ok("qvm-prefs", work, "default_user") == "user\n"
    assert "qrexec" not in features(home, work), "that is its template's, and inherited"
    assert announce(home, work, os="Plan 9", gui="1", default_user="root") == KEPT
    assert features(home, work) == {"os": "Plan 9", "gui": "1"}
    assert home.ok("qvm-prefs", work, "default_user") == "root\n"
    assert features(home, "debian-12") == template
    assert home.ok("qvm-prefs", "debian-12", "default_user") == "user\n"
