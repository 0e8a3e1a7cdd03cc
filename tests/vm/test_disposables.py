"""Disposables on real guests: made for one use, ready in advance, each with an identity of its own."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import crannog.client
from crannog.errors import RpcError, VMNotFoundError
from tests.vm.disposables import (
    DVM,
    FILL_SECONDS,
    disposable_home,
    disposables,
    domains,
    has_program,
    none_is_left,
    pass_time,
    put_program,
    ready,
    refill_later,
    threads_and_files,
    want,
)
from tests.vm.home import Home, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

IDENTITY = """
import glob, hashlib, json, os
read = lambda path: open(path).read().strip()
print(json.dumps({
    "machine-id": read("/etc/machine-id"),
    "hostname": read("/proc/sys/kernel/hostname"),
    "uuid": read("/sys/class/dmi/id/product_uuid"),
    "boot": read("/proc/sys/kernel/random/boot_id"),
    "random": os.urandom(32).hex(),
    "seed": hashlib.sha256(open("/run/qubes/guestdb/%qubes-random-seed", "rb").read()).hexdigest(),
    "ssh": [read(path) for path in sorted(glob.glob("/etc/ssh/ssh_host_*_key.pub"))],
}))
"""


@pytest.fixture(scope="module")
def home(shared_home: Home) -> Iterator[Home]:
    with disposable_home(shared_home) as home:
        yield home


@pytest.fixture(autouse=True)
def nothing_is_left(home: Home) -> Iterator[None]:
    """Have no disposable ready before a test, and none at all after it."""
    refill_later(home, never=True)
    yield
    want(home, 0)


def identity(home: Home) -> dict[str, object]:
    done = home.ok("qvm-run", "--user", "root", "--dispvm", "python3 -", stdin=IDENTITY.encode())
    found: dict[str, object] = json.loads(done)
    return found


def settings(home: Home, vm: str) -> tuple[str, ...]:
    """Return its numbers and addresses; the IPv4 address counts when it has a network, and follows from `dispid`."""
    return tuple(home.ok("qvm-prefs", vm, name).strip() for name in ("dispid", "mac", "uuid", "qid"))


def test_a_command_in_a_disposable(home: Home) -> None:
    done = home.run("qvm-run", "--dispvm", "cat; echo problem >&2; exit 7", stdin=b"in and out")
    assert (done.stdout, done.stderr, done.returncode) == (b"in and out", b"problem\n", 7)
    none_is_left(home)


def test_a_disposable_of_a_named_template(home: Home) -> None:
    assert home.ok("qvm-run", f"--dispvm={DVM}", "--", "echo", "$(hostname)").startswith("disp")
    assert "there is no VM 'nobody'" in home.fails(3, "qvm-run", "--dispvm=nobody", "true")
    none_is_left(home)


def test_two_instances_share_nothing(home: Home) -> None:
    """The template has SSH host keys and a machine-id; neither is what its disposables have."""
    home.ok("qvm-start", "--wait", "debian-12")
    put_program(home, "debian-12", has_program("ssh-keygen"))
    home.ok("qvm-run", "--user", "root", "debian-12", "mkdir -p /etc/ssh && ssh-keygen -q -t ed25519 -N '' -f "
            "/etc/ssh/ssh_host_ed25519_key")  # fmt: skip
    theirs = home.ok("qvm-run", "--user", "root", "debian-12", "cat /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id")
    home.ok("qvm-shutdown", "--wait", "debian-12")
    want(home, 2)
    one, other = ready(home)
    assert not [pair for pair in zip(settings(home, one), settings(home, other), strict=True) if pair[0] == pair[1]]
    found = [identity(home), identity(home)]
    want(home, 0)
    found.append(identity(home))  # one that was not ready in advance
    assert [found[at]["hostname"] for at in (0, 1)] in ([one, other], [other, one])
    for key in found[0]:
        values = [str(each[key]) for each in found]
        assert len(set(values)) == 3, (key, values)
        assert not [value for value in values if value.strip("[]'") in theirs], key
    assert all(len(each["ssh"]) == 1 for each in found)  # type: ignore[arg-type]
    assert all(str(each["uuid"]).replace("-", "").lower() == each["machine-id"] for each in found)


def test_one_that_waited_has_the_right_time_and_is_handed_out_once(home: Home) -> None:
    want(home, 1)
    (name,) = ready(home)
    pass_time(5)
    shown = home.ok("qvm-run", "--dispvm", "hostname; date +%s.%N").split()
    assert shown[0] == name
    assert abs(float(shown[1]) - time.time()) < 3  # it stood still for more than that
    assert home.ok("qvm-run", "--dispvm", "hostname").strip() != name
    none_is_left(home)


def test_ready_ones_are_told_apart_and_are_nobodys(home: Home) -> None:
    want(home, 1)
    (name,) = ready(home)
    row = home.ok("qvm-ls", "--raw-data", "--fields", "name,flags,features.internal,is_preload", name).strip()
    _, flags, *others = row.split("|")
    assert (flags[:2], "i" in flags, others) == ("dp", True, ["1", "True"])
    assert home.ok("qvm-features", DVM, "preload-dispvm").strip() == name
    home.ok("qvm-run", "--all", "true")  # which does not wait for one that is paused


@pytest.mark.slow
def test_more_callers_than_there_are_ready(home: Home) -> None:
    want(home, 2)
    first = set(ready(home))
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: home.ok("qvm-run", "--dispvm", "hostname").strip(), range(4)))
    assert len(set(outputs)) == 4
    assert first <= set(outputs)
    none_is_left(home)


def test_a_call_of_a_guest_to_a_disposable(home: Home) -> None:
    """The caller has the answer and the exit code; the disposable goes after that."""
    policy = os.path.join(home.path, "policy.d", "20-disposables.policy")
    os.makedirs(os.path.dirname(policy), exist_ok=True)
    with open(policy, "w") as file:
        file.write("qubes.VMShell * caller @dispvm allow\n")
    home.ok("qvm-create", "--template", "debian-12", "caller")
    home.ok("qvm-start", "--wait", "caller")
    try:
        want(home, 1)
        (name,) = ready(home)
        command = "qrexec-client-vm @dispvm qubes.VMShell"
        done = home.run("qvm-run", "caller", command, stdin=b"hostname; echo $QREXEC_REMOTE_DOMAIN; exit 9\n")
        assert (done.stdout.decode().split(), done.returncode) == ([name, "caller"], 9)
        none_is_left(home)
    finally:
        home.run("qvm-kill", "caller")
        home.ok("qvm-remove", "--force", "caller")
        os.unlink(policy)


def test_a_user_that_is_killed_leaves_no_disposable(home: Home) -> None:
    want(home, 1)
    (name,) = ready(home)
    with home.popen("qvm-run", "--dispvm", "echo begun; sleep 1000", stdout=subprocess.PIPE) as tool:
        assert tool.stdout
        assert tool.stdout.readline() == b"begun\n"
        assert disposables(home) == {name: "Running"}
        tool.send_signal(signal.SIGKILL)
    none_is_left(home)


def test_the_next_daemon_adopts_what_is_ready(home: Home) -> None:
    want(home, 1)
    (name,) = ready(home)
    home.kill_daemon()
    assert ready(home) == [name]
    assert home.ok("qvm-run", "--dispvm", "hostname").strip() == name
    none_is_left(home)


def test_a_disposable_whose_daemon_was_killed_ends_with_its_user(home: Home) -> None:
    """The next daemon knows of no claim that it would have to wait after: it makes another one ready at once."""
    want(home, 1)
    (name,) = ready(home)
    with home.popen("qvm-run", "--dispvm", "echo begun; cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
        assert tool.stdout
        assert tool.stdin
        assert tool.stdout.readline() == b"begun\n"
        home.kill_daemon()
        tool.stdin.write(b"still there\n")
        tool.stdin.close()
        assert tool.stdout.readline() == b"still there\n"
        assert tool.wait(60) == 0
    wait_until(lambda: name not in disposables(home), "it has gone", 60)


@pytest.mark.parametrize("seconds", [0.1, 0.6, 3.0])
def test_a_daemon_that_is_killed_while_one_starts_leaves_nothing(home: Home, seconds: float) -> None:
    home.ok("qvm-features", DVM, "preload-dispvm-max", "1")
    pass_time(seconds)
    home.kill_daemon()
    wait_until(lambda: len(ready(home)) == 1, "the next one is ready", 120)
    assert set(disposables(home)) == set(ready(home))
    want(home, 0)
    assert {name for name in domains(home) if name.startswith("disp")} == set()


@pytest.mark.slow
def test_a_change_of_the_template_makes_new_ones(home: Home) -> None:
    refill_later(home, never=False)
    want(home, 1)
    (old,) = ready(home)
    home.ok("qvm-start", "--wait", "debian-12")
    home.ok("qvm-run", "--user", "root", "debian-12", "echo new >/etc/changed")
    home.ok("qvm-shutdown", "--wait", "debian-12")
    assert home.ok("qvm-run", "--dispvm", "cat /etc/changed").strip() == "new"
    wait_until(lambda: old not in disposables(home), "what was made before is gone", 60)


CYCLES = 20


def test_memory_short_ends_what_waits(home: Home) -> None:
    before = domains(home)
    want(home, 2)
    home.ok("qvm-features", "dom0", "preload-dispvm-threshold", str(2**24))  # MiB: more than any host has
    try:
        wait_until(lambda: not disposables(home), "none waits", FILL_SECONDS)
        assert domains(home) == before
    finally:
        home.ok("qvm-features", "--unset", "dom0", "preload-dispvm-threshold")
    wait_until(lambda: len(ready(home)) == 2, "two wait again", FILL_SECONDS)


def free_memory(home: Home, vm: str) -> tuple[int, int]:
    """Return what is free for a VM as a refusal says it, and what QEMU needs besides the guest's, in MiB."""
    home.ok("qvm-prefs", vm, "memory", str(2**20))
    complaint = home.run("qvm-start", vm).stderr.decode()
    overhead, free = re.findall(r"and (\d+) MiB for QEMU, but (\d+) MiB are free", complaint)[0]
    return int(free), int(overhead) - 2**20 // 512


def test_who_waits_makes_room_for_who_is_asked_for(home: Home) -> None:
    want(home, 2)
    waiting = ready(home)
    home.ok("qvm-create", "--template", "debian-12", "big")
    try:
        home.ok("qvm-prefs", "big", "maxmem", "0")
        free, overhead = free_memory(home, "big")
        assert ready(home) == waiting, "they would not have been enough, so none has ended"
        home.ok("qvm-prefs", "big", "memory", str((free + 600 - overhead) * 512 // 513))
        home.ok("qvm-start", "big")
        left = disposables(home)
        assert len(left) < 2
        assert set(left) < set(waiting)
    finally:
        home.run("qvm-kill", "big")
        home.ok("qvm-remove", "--force", "big")


@pytest.mark.slow
def test_cycles_leave_nothing(home: Home) -> None:
    """Some run a command, which takes a boot; the others are made and removed."""
    home.ok("qvm-run", "--dispvm", "true")
    none_is_left(home)
    files, before = home.files(), threads_and_files(home.daemon())
    for at in range(CYCLES):
        if at % 5 == 0:
            home.ok("qvm-run", "--dispvm", "true")
        else:
            home.ok("qvm-remove", "--force", _create(home))
    none_is_left(home)
    wait_until(lambda: not [line for line in home.processes() if "disp" in line], "no process is left")
    left = {path for path in home.files() - files if "disp" in path}
    assert left == set()
    assert not {name for name in domains(home) if name.startswith("disp")}
    threads, descriptors, memory = threads_and_files(home.daemon())
    assert descriptors <= before[1] + 4
    assert threads <= before[0] + 4
    assert memory <= before[2] + 20 * 1024


def _create(home: Home) -> str:
    script = "from crannog.client.connection import Client; print(Client().text('admin.vm.CreateDisposable', 'dvm'))"
    done = subprocess.run([sys.executable, "-c", script], env=home.env, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().strip()


# -- the library


def test_the_library(home: Home) -> None:
    async def work() -> str:
        async with crannog.client.disposable(DVM, home=home.path) as vm:
            await vm.write("/tmp/in", b"\0binary" * 1000)
            assert await vm.read("/tmp/in") == b"\0binary" * 1000
            result = await vm.run(["sh", "-c", "wc -c; echo no >&2; exit 3"], stdin=b"12345")
            assert (result.exit_code, result.stdout, result.stderr) == (3, b"5\n", b"no\n")
            with pytest.raises(TimeoutError):
                await vm.run("sleep 1000", timeout=1)
            with pytest.raises(RpcError, match="more than 1000 bytes"):
                await vm.run("yes", max_output=1000)
            with pytest.raises(RpcError, match="/nowhere was not read"):
                await vm.read("/nowhere")
            both = await asyncio.gather(vm.run("echo a"), vm.run("echo b"))
            assert [one.stdout for one in both] == [b"a\n", b"b\n"]
            assert (await vm.run("ls /sys/class/net")).stdout.split() == [b"lo"]
            assert home.ok("qvm-prefs", vm.name, "netvm").strip() in ("", "None")
            return vm.name

    asyncio.run(work())
    none_is_left(home)


def test_the_library_ends_what_an_error_leaves(home: Home) -> None:
    async def fail() -> None:
        async with crannog.client.disposable(DVM, home=home.path):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        asyncio.run(fail())
    none_is_left(home)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.5, 2.0])
def test_the_library_ends_what_nobody_waits_for_any_longer(home: Home, seconds: float) -> None:
    """Given up at any time: before it has a name, while it starts, and while a command runs in it."""

    async def hurry() -> None:
        async with asyncio.timeout(seconds), crannog.client.disposable(DVM, home=home.path) as vm:
            await vm.run("sleep 1000")

    with pytest.raises(TimeoutError):
        asyncio.run(hurry())
    none_is_left(home)
    wait_until(lambda: not [name for name in domains(home) if name.startswith("disp")], "no domain is left", 60)


def test_the_library_names_what_is_not_there(home: Home) -> None:
    async def ask() -> None:
        async with crannog.client.disposable("nobody", home=home.path):
            pass

    with pytest.raises(VMNotFoundError):
        asyncio.run(ask())
