"""qvm-run against a real guest: streams, exit codes, users, and what happens when either side goes away."""

import hashlib
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm

SIZE = 20_000_000


def guest_has(home: Home, vm: str, command_line: str) -> bool:
    """Tell whether a process with exactly that command line runs in the guest."""
    listing = home.ok("qvm-run", "--user", "root", vm, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true")
    return command_line in listing


def test_all_bytes_pass_both_ways(shared_home: Home, running: str) -> None:
    data = bytes(range(256)) * 4
    done = shared_home.run("qvm-run", running, "cat; printf '\\377\\0\\n' >&2; exit 42", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (42, data, b"\xff\0\n")


def test_much_data_passes_unchanged(shared_home: Home, running: str) -> None:
    data = os.urandom(SIZE)
    done = shared_home.run("qvm-run", running, "sha256sum", stdin=data)
    assert done.stdout.decode().split()[0] == hashlib.sha256(data).hexdigest()
    make = f"head -c {SIZE} /dev/urandom > /tmp/much; sha256sum < /tmp/much >&2; cat /tmp/much; rm /tmp/much"
    done = shared_home.run("qvm-run", running, make)
    assert len(done.stdout) == SIZE
    assert done.stderr.decode().split()[0] == hashlib.sha256(done.stdout).hexdigest()


def test_ten_at_once_do_not_mix(shared_home: Home, running: str) -> None:
    calls = [
        shared_home.popen("qvm-run", running, f"cat; exit {i}", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for i in range(10)
    ]
    for i, call in enumerate(calls):
        output, _ = call.communicate(b"%d" % i * 100_000, timeout=60)
        assert (call.returncode, output) == (i, b"%d" % i * 100_000)


def test_a_reader_that_goes_away_ends_the_command(shared_home: Home, running: str) -> None:
    call = shared_home.popen("qvm-run", running, "exec yes gone-reader", stdout=subprocess.PIPE)
    assert call.stdout
    assert call.stdout.readline() == b"gone-reader\n"
    call.stdout.close()
    assert call.wait(60) == 141
    wait_until(lambda: not guest_has(shared_home, running, "yes gone-reader"), "the guest's yes is gone")


def test_standard_error_can_be_opened_by_name(shared_home: Home, running: str) -> None:
    done = shared_home.run("qvm-run", running, "echo trouble > /dev/stderr")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"trouble\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)])
def test_a_client_that_is_interrupted_ends_the_command(shared_home: Home, running: str, number: int, code: int) -> None:
    call = shared_home.popen("qvm-run", running, f"echo up; exec sleep 77{number:02}", stdout=subprocess.PIPE)
    assert call.stdout
    assert call.stdout.readline() == b"up\n"
    call.send_signal(number)
    assert call.wait(60) == code
    call.stdout.close()
    wait_until(lambda: not guest_has(shared_home, running, f"sleep 77{number:02}"), "the guest's sleep is gone")


@pytest.mark.parametrize(
    ("words", "code", "output"),
    [
        (["id -un; pwd; echo $HOME $USER $LOGNAME"], 0, "user\n/home/user\n/home/user user user\n"),
        (["--user", "root", "id -un; pwd"], 0, "root\n/root\n"),
        (["--no-stdin", "cat; echo end"], 0, "end\n"),
        (["--", "echo", "two", "words"], 0, "two words\n"),
        (["kill -9 $$"], 137, ""),
        (["kill -15 $$"], 143, ""),
        (["exit 255"], 255, ""),
        (["case $PATH in */usr/local/bin*:/usr/bin*) echo sane;; esac"], 0, "sane\n"),
        (["env | grep -c -i crannog"], 1, "0\n"),
    ],
)
def test_users_environment_and_codes(shared_home: Home, running: str, words: list[str], code: int, output: str) -> None:
    options, command = words[:-1], words[-1:]
    if "--" in words:
        options, command = [], words
    done = shared_home.run("qvm-run", *options, running, *command)
    assert (done.returncode, done.stdout.decode()) == (code, output), done.stderr


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--user", "nobody-here", "true"], 125, "nobody-here"),
        (["no-such-command"], 127, "no-such-command"),
        (["/etc/passwd"], 126, "ermission denied"),
    ],
)
def test_commands_that_cannot_run(shared_home: Home, running: str, words: list[str], code: int, reason: str) -> None:
    done = shared_home.run("qvm-run", *words[:-1], running, words[-1])
    assert (done.returncode, done.stdout) == (code, b"")
    assert reason in done.stderr.decode()


def test_starting_what_runs_and_other_requests_that_need_it_halted(shared_home: Home, running: str) -> None:
    home = shared_home
    assert f"{running} cannot be started: it is Running already" in home.fails(5, "qvm-start", running)
    home.ok("qvm-start", "--skip-if-running", running)
    shut = f"shut it down with 'qvm-shutdown {running}'"
    assert shut in home.fails(5, "qvm-remove", "--force", running)
    for name, value in (("virt_mode", "hvm"), ("kernel", ""), ("template", "debian-12"), ("name", "other")):
        assert shut in home.fails(5, "qvm-prefs", running, name, value)
    assert shut in home.fails(5, "qvm-prefs", "--default", running, "kernel")


def test_only_the_owner_reaches_sockets_and_files(shared_home: Home, running: str) -> None:
    assert stat.S_IMODE(os.stat(shared_home.path).st_mode) == 0o700
    found = {}
    for folder in ("run", "log", "pools"):
        for path in (Path(shared_home.path, folder), *Path(shared_home.path, folder).rglob("*")):
            found[path] = stat.S_IMODE(path.lstat().st_mode)
    sockets = [path for path in found if path.is_socket()]
    assert f"rpc-{running}.sock" in {path.name for path in sockets}
    for name in (f"rpc-{running}.sock", "crannogd.sock"):
        assert found[Path(shared_home.path, "run", name)] == 0o600
    assert not {path: oct(mode) for path, mode in found.items() if mode & 0o077 and not path.is_socket()}
    assert stat.S_IMODE(os.stat(f"{shared_home.path}/run").st_mode) == 0o700


def test_a_halted_vm_is_started_once_for_all_who_ask(shared_home: Home, work: str) -> None:
    home = shared_home
    assert f"{work} is Halted" in home.fails(2, "qvm-run", "--no-autostart", work, "true")
    assert home.state(work) == "Halted"
    calls = [home.popen("qvm-run", work, f"echo {i}", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(4)]
    answers = [call.communicate(timeout=60) for call in calls]
    assert answers == [(b"%d\n" % i, b"") for i in range(4)]
    assert home.state(work) == "Running"
