"""A VM of each mode on a real Xen, from its first start to its end: the tests stand in the order of its life.

Booting takes a minute or more here: what is done in one session shares it.
"""

import json
import os
import select
import socket
import stat
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.home import wait_until
from tests.xen.guests import MODES, Guest, Note, assert_in_order, read_events, refused
from tests.xen.home import MEMORY, XenHome, run, wait_for_remains, xen_domain

SOON = 60
"""Seconds; an emulated guest of an emulated Xen takes seconds for a command."""
NOTHING_LEFT = "xl list, dmsetup ls, losetup -a, backends, ps: as before"


@pytest.fixture(scope="module", params=MODES)
def guest(request: pytest.FixtureRequest, xen_home: XenHome) -> Iterator[Guest]:
    """Return a halted VM of each mode; the first test starts it."""
    made = Guest(xen_home, request.param)
    made.create()
    yield made
    xen_home.remove(made.name)


# -- it starts


def test_it_starts(guest: Guest, record_property: Note) -> None:
    stream = guest.home.listen()
    record_property("fact", f"agent after {guest.start():.0f} s")
    assert_in_order(read_events(stream, guest.name, "domain-start"), "domain-pre-start", "domain-start")
    name, _, memory, vcpus, *_ = xen_domain(guest.name)
    assert (name, int(vcpus)) == (guest.name, 1)
    screen = 16 if guest.mode == "hvm" else 0  # MiB of it that are the screen's (libxl's video_memkb)
    assert MEMORY - screen - 8 <= int(memory) <= MEMORY
    record_property("fact", f"xl list: {memory} MiB")
    assert guest.run("cat /sys/hypervisor/type").strip() == "xen"
    log = Path(guest.home.paths.console_log(guest.name))
    if guest.mode == "hvm":  # booted by its own GRUB, whose words for the kernel have `quiet`; its login is on ttyS0
        guest.run("echo seen >/dev/hvc0")
        wait_until(lambda: "seen" in log.read_text(errors="replace"), "Xen's console is logged", SOON)
    assert log.stat().st_size > 0, "nothing on its console"


def test_memory_that_can_grow(guest: Guest, record_property: Note) -> None:
    """The guest starts with `memory` and knows that it may have `maxmem`."""
    most = int(guest.prop("maxmem"))
    assert (most > MEMORY) == (guest.mode != "hvm"), "those whose memory is balanced can grow"
    configs = [one["config"] for one in json.loads(run("xl", "list", "--long", guest.name))]
    noted = [one["b_info"]["max_memkb"] // 1024 for one in configs if one["c_info"]["name"] == guest.name]
    assert noted == [most]
    record_property("fact", f"{MEMORY} MiB of {most}")


def test_paused_it_gets_no_time(guest: Guest) -> None:
    stream = guest.home.listen()
    guest.home.call("admin.vm.Pause", guest.name)
    assert (guest.home.power_state(guest.name), xen_domain(guest.name)[4][2]) == ("Paused", "p")
    guest.home.call("admin.vm.Unpause", guest.name)
    assert (guest.home.power_state(guest.name), xen_domain(guest.name)[4][2]) == ("Running", "-")
    assert_in_order(read_events(stream, guest.name, "domain-unpaused"), "domain-paused", "domain-unpaused")


def test_its_template_cannot_run_beside_it(guest: Guest, record_property: Note) -> None:
    """B12: they never run at the same time, as this pool's driver has no revisions."""
    sentence = refused(guest.home, guest.template)
    assert guest.name in sentence, sentence
    record_property("fact", f"refused: {sentence}")


def test_its_console_can_be_worked_at(guest: Guest) -> None:
    """A person logs in there: `user` has no password."""
    terminal = os.open(guest.home.call("admin.vm.Console", guest.name), os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(terminal)
        for typed, answer in (
            (b"", b"login: "),
            (b"user", b"$ "),
            (b"echo con-$((20+3))", b"con-23"),
            (b"exit", b"logout"),
        ):
            os.write(terminal, typed + b"\r")
            read_until(terminal, answer)
    finally:
        os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> None:
    """Read what comes from a terminal up to some bytes."""
    untrusted_text = b""
    deadline = time.monotonic() + SOON
    while wanted not in untrusted_text:
        left = max(0.0, deadline - time.monotonic())
        assert select.select([terminal], [], [], left)[0], (wanted, untrusted_text)
        untrusted_text += os.read(terminal, 4096)


def test_an_hvm_has_a_screen(guest: Guest, record_property: Note) -> None:
    """Xen itself knows VNC on TCP only; ours is on a socket that its owner alone can use."""
    path = guest.home.paths.screen_socket(guest.prop("uuid"))
    if guest.mode != "hvm":
        assert not os.path.exists(path), "it has no screen"
        return
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as screen:
        screen.settimeout(SOON)
        screen.connect(path)
        greeting = screen.recv(12)
    assert greeting == b"RFB 003.008\n"
    record_property("fact", f"VNC on a socket says {greeting.decode().strip()}")


# -- its agent, and XenStore


def test_commands_run_in_the_guest(guest: Guest, record_property: Note) -> None:
    began = time.monotonic()
    assert guest.run("echo here; uname -s") == "here\nLinux\n"
    record_property("fact", f"a command in {time.monotonic() - began:.1f} s")
    every = bytes(range(256)) * 64
    done = guest.home.run("qvm-run", "--user=root", guest.name, "cat; echo aside >&2; exit 7", stdin=every)
    assert (done.returncode, done.stdout == every, done.stderr) == (7, True, b"aside\n")


def test_the_channel_is_a_console_of_xens(guest: Guest) -> None:
    assert guest.run("ls /sys/class/virtio-ports 2>/dev/null | wc -l") == "0\n"
    assert run("xenstore-read", f"{guest.folder}/device/console/1/name") == "org.crannog.agent.0\n"


def test_tools_announce_themselves_in_xenstore(guest: Guest) -> None:
    place = guest.folder
    assert run("xenstore-read", f"{place}/qubes-tools/os", f"{place}/qubes-tools/qrexec") == "Linux\n1\n"
    listing = run("xenstore-ls", "-p", place).splitlines()
    (line,) = [line for line in listing if line.startswith("qubes-tools ")]
    assert line.endswith(f"(n0,b{place.rpartition('/')[2]})")
    wait_until(lambda: guest.feature("os") == "Linux", "the VM is known by what its tools say", SOON)
    assert guest.feature("qrexec") == "1"


def test_a_change_in_xenstore_is_taken_over_and_nonsense_is_not(guest: Guest) -> None:
    assert guest.as_guest("s.write_all({'qubes-tools/os': 'Plan 9'})") == ""
    wait_until(lambda: guest.feature("os") == "Plan 9", "the change is taken over", SOON)
    log = Path(guest.home.paths.rpc_log(guest.name))
    assert guest.as_guest("s.write_all({'qubes-tools/os': 'x' * 65})") == ""
    wait_until(lambda: "refused the announcement, nothing is changed" in log.read_text(), "it is refused", SOON)
    assert guest.feature("os") == "Plan 9"
    assert guest.as_guest("s.write_all({'qubes-tools/os': 'Linux'})") == ""
    wait_until(lambda: guest.feature("os") == "Linux", "sense is taken over again", SOON)


@pytest.mark.parametrize("path", ["new", "name", "memory/target"])
def test_a_guest_may_write_in_its_two_folders_alone(guest: Guest, path: str) -> None:
    assert guest.as_guest(f"s.write_all({{'{path}': 'lie'}})").startswith("PermissionError: [Errno 13]")
    assert guest.as_guest("s.write_all({'features-request/x': '1'})") == ""


def test_a_guest_reads_what_the_host_says_of_it(guest: Guest) -> None:
    assert guest.as_guest("print(s.read('qubes-vm-type').decode())") == "AppVM"
    guest.home.call("admin.vm.feature.Set", guest.name, "service.cups", "1")
    said = f"{guest.folder}/qubes-service/cups"
    wait_until(lambda: "cups" in run("xenstore-ls", said.rpartition("/")[0]), "it is told while it runs", SOON)
    assert guest.as_guest("print(s.read('qubes-service/cups').decode())") == "1"


# -- what is killed meanwhile


def test_an_agent_that_is_killed_comes_back(guest: Guest) -> None:
    guest.home.run("qvm-run", "--user=root", guest.name, "kill -9 $PPID")
    assert guest.run("echo again") == "again\n"


def test_an_rpc_process_that_is_killed_is_replaced(guest: Guest) -> None:
    pid = guest.rpc_process()
    os.kill(pid, 9)
    wait_until(lambda: guest.rpc_process() not in (0, pid), "another one serves the VM", SOON)
    assert guest.home.run("qvm-run", "--user=root", guest.name, "echo again").stdout == b"again\n"


def test_a_killed_daemon_is_succeeded_and_stub_domains_are_found(guest: Guest, record_property: Note) -> None:
    assert guest.prop("stubdom_xid") == "-1"
    # As libxl does on hosts that run device models in domains of their own.
    run("xenstore-write", f"{guest.folder}/image/device-model-domid", "77")
    guest.home.kill_daemon()
    assert guest.run("echo here") == "here\n", "the VM does not need the daemon"
    assert guest.home.ok("qvm-prefs", guest.name, "stubdom_xid") == "77\n", "the next daemon finds it"
    assert guest.home.power_state(guest.name) == "Running"
    run("xenstore-rm", f"{guest.folder}/image/device-model-domid")
    record_property("fact", "killed with SIGKILL while the VM ran: adopted")


# -- it ends, and runs once more


def test_it_shuts_down_and_nothing_is_left(guest: Guest, record_property: Note) -> None:
    guest.run("echo changed >/root/change && echo kept >/home/user/kept && sync")
    stream = guest.home.listen()
    guest.home.call("admin.vm.Shutdown", guest.name)
    guest.home.await_state(guest.name, "Halted")
    assert_in_order(read_events(stream, guest.name, "domain-shutdown"), "domain-pre-shutdown", "domain-shutdown")
    wait_for_remains(guest.before)
    record_property("fact", NOTHING_LEFT)


def test_root_is_the_templates_again_and_private_is_kept(guest: Guest, record_property: Note) -> None:
    """B1, and a kill instead of a shutdown."""
    record_property("fact", f"agent after {guest.start():.0f} s")
    assert guest.run("ls /root/change 2>&1 || true").endswith("No such file or directory\n")
    assert guest.run("cat /home/user/kept") == "kept\n"
    assert guest.prop("stubdom_xid") == "-1"
    guest.home.call("admin.vm.Kill", guest.name)
    assert xen_domain(guest.name) == []
    assert guest.prop("stubdom_xid") == "-1"
    wait_for_remains(guest.before)
    assert guest.digest_template() == guest.digest, "the template was changed"
    record_property("fact", f"template's checksum as before; {NOTHING_LEFT}")
