"""Calls between real guests, and from guests to this host, as the policy says."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm

RULES = """
test.Echo      *  @anyvm  dom0   allow
test.Echo      *  caller  target allow
test.Root      *  caller  target allow user=root
test.Idle      *  caller  idle   allow autostart=no
test.Loop      *  @anyvm  @anyvm allow
test.Throw     *  caller  @dispvm allow
qubes.Filecopy *  caller  target allow
test.Ask       *  caller  target ask
"""
ECHO = '#!/bin/sh\ncat; echo "$QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_ARGUMENT"; exit 5\n'


def install(home: Home, vm: str, service: str, script: str) -> None:
    """Put a service into a running VM."""
    place = f"/usr/local/etc/qubes-rpc/{service}"
    home.ok(
        "qvm-run", "--user", "root", vm, f"mkdir -p {os.path.dirname(place)} && cat > {place} && chmod 755 {place}",
        stdin=script.encode(),
    )  # fmt: skip


def call(home: Home, target: str, service: str, data: bytes = b"", vm: str = "caller") -> tuple[str, str, int]:
    done = home.run("qvm-run", vm, f"qrexec-client-vm {target} {service}", stdin=data)
    return done.stdout.decode(), done.stderr.decode(), done.returncode


@pytest.fixture(scope="module")
def home(shared_home: Home) -> Iterator[Home]:
    """Return the home with two running VMs, `caller` and `target`, a halted one, `idle`, and the rules above."""
    folder = Path(shared_home.path)
    (folder / "policy.d").mkdir(exist_ok=True)
    (folder / "policy.d" / "30-test.policy").write_text(RULES)
    (folder / "qubes-rpc").mkdir(exist_ok=True)
    service = folder / "qubes-rpc" / "test.Echo"
    service.write_text(ECHO)
    service.chmod(0o755)
    for name in ("caller", "target", "idle"):
        shared_home.ok("qvm-create", "--template", "debian-12", name)
    for name in ("caller", "target"):
        shared_home.ok("qvm-start", "--wait", name)
    install(shared_home, "target", "test.Echo", ECHO)
    install(shared_home, "target", "test.Root", "#!/bin/sh\nid -un\n")
    yield shared_home
    for name in ("caller", "target", "idle"):
        shared_home.run("qvm-kill", name)
        shared_home.ok("qvm-remove", "--force", name)
    (folder / "policy.d" / "30-test.policy").unlink()
    service.unlink()


def processes(home: Home) -> str:
    """Return the command lines of what runs in `target`."""
    return home.ok("qvm-run", "target", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")


def last_decisions(home: Home, count: int = 1) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(home.path, "log/policy.log").read_text().splitlines()[-count:]]


def test_a_service_of_this_host(home: Home) -> None:
    assert call(home, "dom0", "test.Echo+arg", b"hello ") == ("hello caller arg\n", "", 5)
    (told,) = last_decisions(home)
    assert (told["source"], told["service"], told["argument"], told["decision"]) == (
        "caller",
        "test.Echo",
        "+arg",
        "allow",
    )
    assert str(told["rule"]).endswith("30-test.policy:2")


def test_a_service_of_another_vm(home: Home) -> None:
    assert call(home, "target", "test.Echo+x", b"hello ") == ("hello caller x\n", "", 5)
    assert call(home, "target", "test.Root")[0] == "root\n"


def test_megabytes_between_vms(home: Home) -> None:
    command = "head -c 3000000 /dev/urandom > /tmp/data; md5sum < /tmp/data; "
    command += "qrexec-client-vm target test.Echo < /tmp/data | head -c 3000000 | md5sum"
    sent, came = home.ok("qvm-run", "caller", command).splitlines()
    assert sent == came


@pytest.mark.parametrize(
    ("target", "service"),
    [
        ("dom0", "test.Unknown"),
        ("target", "qubes.VMShell"),
        ("no-such-vm", "test.Echo"),
        ("caller", "test.Loop"),
        ("idle", "test.Idle"),
        ("dom0", "admin.vm.List"),
        ("dom0", "+x"),
    ],
)
def test_what_is_refused(home: Home, target: str, service: str) -> None:
    output, complaint, code = call(home, target, service)
    assert (output, code) == ("", 126)
    assert "Request refused" in complaint
    assert home.state("idle") == "Halted"


def test_nobody_to_ask(home: Home) -> None:
    assert call(home, "target", "test.Ask")[2] == 126
    assert "crannog policy agent" in str(last_decisions(home)[0]["reason"])


@pytest.mark.parametrize(("answer", "code"), [("allow:target", 5), ("allow:idle", 126), ("deny", 126), ("", 126)])
def test_somebody_is_asked(home: Home, tmp_path: Path, answer: str, code: int) -> None:
    """The program that asks gets the question; only an answer that was offered counts."""
    program = tmp_path / "answer"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/question\necho '{answer}'\n")
    program.chmod(0o755)
    install(home, "target", "test.Ask", ECHO)
    with home.popen("crannog", "policy", "agent", "--command", str(program)) as agent:
        try:
            wait_until(lambda: os.path.exists(f"{home.path}/run/policy-agent.sock"), "somebody is there to ask")
            assert call(home, "target", "test.Ask+x")[2] == code
        finally:
            agent.terminate()
    question = json.loads((tmp_path / "question").read_text())
    assert (question["source"], question["service"], question["argument"]) == ("caller", "test.Ask", "+x")
    asked, answered = last_decisions(home, 2)
    assert (asked["decision"], answered["decision"]) == ("ask", "allow" if code == 5 else "deny")


def test_the_target_is_started(home: Home) -> None:
    rules = Path(home.path, "policy.d/20-start.policy")
    rules.write_text("test.Echo * caller idle allow\n")
    try:
        code = call(home, "idle", "test.Echo")[2]
        assert home.state("idle") == "Running"
        assert code == 127, "there is no such service in it"
    finally:
        rules.unlink()
        home.run("qvm-kill", "idle")


def test_files_are_copied(home: Home) -> None:
    home.ok("qvm-run", "caller", "mkdir -p d/e && echo one > d/a && echo two > d/e/b && chmod 700 d/e")
    home.ok("qvm-run", "caller", "qvm-copy-to-vm target d")
    found = home.ok("qvm-run", "target", "cd QubesIncoming/caller && cat d/a d/e/b && stat -c %a d/e")
    assert found == "one\ntwo\n700\n"
    assert home.run("qvm-run", "caller", "qvm-copy-to-vm target d").returncode != 0, "it is there already"


def test_files_of_this_host_are_copied_and_moved(home: Home, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "one").write_text("first")
    (tmp_path / "two").write_bytes(bytes(100_000))
    home.ok("qvm-copy-to-vm", "target", f"{tmp_path}/papers")
    assert home.ok("qvm-run", "target", "cat QubesIncoming/dom0/papers/one") == "first"
    assert (tmp_path / "papers" / "one").exists()
    again = home.run("qvm-copy-to-vm", "target", f"{tmp_path}/papers")
    assert again.returncode == 1
    assert b"has a file 'papers' from this one already" in again.stderr
    home.ok("qvm-move-to-vm", "target", f"{tmp_path}/two")
    assert home.ok("qvm-run", "target", "stat -c %s QubesIncoming/dom0/two") == "100000\n"
    assert not (tmp_path / "two").exists()
    assert "cannot be read" in home.fails(2, "qvm-copy-to-vm", "target", f"{tmp_path}/nothing")


def test_a_disposable_for_one_call(home: Home) -> None:
    home.ok("qvm-prefs", "idle", "template_for_dispvms", "True")
    home.ok("qvm-prefs", "caller", "default_dispvm", "idle")
    try:
        code = call(home, "@dispvm", "test.Throw")[2]
        assert code == 127, "it was started, and has no such service"
        wait_until(lambda: "disp" not in home.ok("qvm-ls", "--raw-list"), "the disposable is gone")
    finally:
        home.ok("qvm-prefs", "--default", "caller", "default_dispvm")
        home.ok("qvm-prefs", "idle", "template_for_dispvms", "False")


def read_db(home: Home, path: str, vm: str = "caller") -> str:
    return home.run("qvm-run", vm, f"qubesdb-read {path}").stdout.decode()


def test_a_guest_knows_itself(home: Home) -> None:
    assert read_db(home, "/name") == "caller\n"
    assert read_db(home, "/qubes-base-template") == "debian-12\n"
    assert read_db(home, "/qubes-random-seed") == "", "that is for root alone"
    home.ok("qvm-features", "caller", "service.crond", "1")
    wait_until(lambda: read_db(home, "/qubes-service/crond") == "1\n", "the service is told of")
    os.kill(home.rpc_process("caller"), signal.SIGKILL)
    home.ok("qvm-features", "--delete", "caller", "service.crond")
    wait_until(lambda: read_db(home, "/qubes-service/crond") == "", "a new process tells what is new")
    assert read_db(home, "/name") == "caller\n"


def test_what_tools_ask_for(home: Home) -> None:
    """Of a template it is kept, of a VM that starts from one it is not; nonsense is not."""
    home.ok("qvm-start", "--wait", "debian-12")
    try:
        ask = "qubesdb-write /features-request/supported-rpc.test.X 1 && qrexec-client-vm dom0 qubes.FeaturesRequest"
        for vm in ("caller", "debian-12"):
            home.ok("qvm-run", "--user", "root", vm, ask)
        assert home.run("qvm-features", "caller", "supported-rpc.test.X").returncode != 0
        assert home.ok("qvm-features", "debian-12", "supported-rpc.test.X") == "1\n"
        assert home.run("qvm-run", "debian-12", ask).returncode != 0, "only root may write"
        home.run("qvm-run", "--user", "root", "debian-12", ask.replace("X 1", "X maybe"))
        assert home.ok("qvm-features", "debian-12", "supported-rpc.test.X") == "1\n"
    finally:
        home.run("qvm-kill", "debian-12")


def test_a_process_that_is_killed_ends_its_calls(home: Home) -> None:
    install(home, "target", "test.Echo+slow", "#!/bin/sh\nsleep 60\n")
    with home.popen("qvm-run", "caller", "qrexec-client-vm target test.Echo+slow; echo ended $?", stdout=-1) as tool:
        wait_until(lambda: "sleep 60" in processes(home), "the service runs")
        os.kill(home.rpc_process("target"), signal.SIGKILL)
        output, _ = tool.communicate(timeout=60)
        assert output.startswith(b"ended ")
        assert output != b"ended 0\n"
    deadline = time.monotonic() + 60
    while call(home, "target", "test.Echo")[2] != 5:
        assert time.monotonic() < deadline, "calls work again after a while"


def test_the_caller_that_ends_takes_the_service_along(home: Home) -> None:
    install(home, "target", "test.Echo+long", "#!/bin/sh\nexec sleep 61\n")
    with home.popen("qvm-run", "caller", "exec qrexec-client-vm target test.Echo+long", stdout=-1) as tool:
        wait_until(lambda: "sleep 61" in processes(home), "the service runs")
        tool.kill()
    wait_until(lambda: "sleep 61" not in processes(home), "the service is gone")
