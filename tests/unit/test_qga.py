"""QEMU's guest agent in the place of ours, with real RPC processes and tools, and an agent that may be hostile."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status
from crannog.core.qga import qga_path
from crannog.rpc.qga_channel import INPUT_MAX
from crannog.rpc.qga_messages import BIG_LINE_MAX, OUTPUT_MAX
from tests.fakes import short_folder
from tests.processes import memory_of
from tests.unit.qga_world import COMMANDS, FakeAgent, fails, returns
from tests.unit.rpc_world import World, wait_until

HASTY = """
import sys
from crannog.rpc import qga, qga_port, vm_loop, vm_process
vm_loop.FALLBACK_WAIT, qga.PATIENCE, qga.PING_PAUSE = 0.1, float(sys.argv[1]), 0.3
qga_port.SILENCE_MAX, qga_port.RESYNC_PAUSE, qga_port.RECONNECT_PAUSE = 4.0, 0.2, 0.2
sys.exit(vm_process.main(sys.argv[2:]))
"""
"""Runs an RPC process that waits for nothing as long as it does in use."""


@pytest.fixture
def world() -> Iterator[World]:
    with short_folder() as folder:
        world = World(Path(folder))
        yield world
        world.close()


@pytest.fixture
def agent(world: World) -> Iterator[FakeAgent]:
    """Return QEMU's guest agent in a VM without ours, where no RPC process runs yet."""
    agent = FakeAgent(qga_path(world.host_port))
    yield agent
    agent.close()


def start_process(world: World, patience: float = 0.1) -> "subprocess.Popen[bytes]":
    world.start_relay()
    names = ["--name", "vm1", "--channel", world.host_port, "--listen", world.rpc_socket]
    return world.start("-c", HASTY, str(patience), *names)


def state(world: World) -> object:
    return read_status(world.rpc_socket, 5)["agent"] if world.is_serving() else ""


def start(world: World) -> "subprocess.Popen[bytes]":
    process = start_process(world)
    wait_until(lambda: state(world) == "fallback")
    return process


def test_it_stands_in_and_says_so(world: World, agent: FakeAgent) -> None:
    start(world)
    facts = {"version": "7.2.22", "os": "Linux", "distribution": "debian", "release": "12"}
    assert read_status(world.rpc_socket, 5) == {"agent": "fallback", "announced": None, "qemu": facts}


def test_commands(world: World, agent: FakeAgent) -> None:
    start(world)
    data = bytes(range(256)) * 4
    assert world.run("cat; printf '\\377\\n' >&2; exit 42", data) == (42, data, b"\xff\n")
    assert world.run("exit 0") == (0, b"", b"")
    assert world.run("kill -9 $$") == (137, b"", b"")
    assert "input-data" not in next(arguments for name, arguments in agent.requests[::-1] if name == "guest-exec")


def test_a_command_that_takes_time_and_ten_at_once(world: World, agent: FakeAgent) -> None:
    start(world)
    calls = [world.call(f"sleep 0.2; cat; exit {i}") for i in range(10)]
    for i, call in enumerate(calls):
        out, _ = call.communicate(b"%d" % i * 10_000, timeout=30)
        assert (call.returncode, out) == (i, b"%d" % i * 10_000)


def test_much_input_and_output(world: World, agent: FakeAgent) -> None:
    start(world)
    data = os.urandom(INPUT_MAX)
    code, out, err = world.run("cat; cat /dev/null >&2", data)
    assert (code, out == data, err) == (0, True, b"")


def test_too_much_input_is_refused(world: World, agent: FakeAgent) -> None:
    start(world)
    code, out, err = world.run("cat", bytes(INPUT_MAX + 1))
    assert (code, out) == (125, b"")
    assert b"takes at most 4 MiB of input" in err
    assert "guest-exec" not in [name for name, _ in agent.requests]


def test_output_that_was_cut_is_told(world: World, agent: FakeAgent) -> None:
    agent.answers["guest-exec-status"] = lambda *_: returns(
        {"exited": True, "exitcode": 0, "out-data": "YQ==", "out-truncated": True}
    )
    start(world)
    code, out, err = world.run("true")
    assert (code, out) == (125, b"a")
    assert err == b"the output is cut: QEMU's guest agent keeps 16 MiB of each\n"


def test_a_slow_reader_holds_up_no_small_command(world: World, agent: FakeAgent) -> None:
    start(world)
    slow = world.call(f"head -c {OUTPUT_MAX} /dev/zero", stdin=subprocess.DEVNULL)
    assert slow.stdout
    assert slow.stdout.read(1) == b"\0"
    assert world.run("echo quick") == (0, b"quick\n", b"")
    assert len(slow.stdout.read()) == OUTPUT_MAX - 1
    assert slow.wait(60) == 0


def test_users(world: World, agent: FakeAgent) -> None:
    start(world)
    for user, told in (("DEFAULT", "root"), ("anna", "anna"), ("root", "root")):
        world.run("true", user=user)
        name, arguments = next(request for request in agent.requests[::-1] if request[0] == "guest-exec")
        words = arguments["arg"]
        assert isinstance(words, list)
        assert (name, arguments["path"], words[-2:]) == ("guest-exec", "/bin/sh", [told, "true"])
    code, _, err = world.run("true", user="-x")
    assert (code, err) == (125, b"that is not the name of a user\n")


@pytest.mark.parametrize(
    ("command", "data", "result"),
    [
        ("QUBESRPC qubes.VMShell+ dom0", b"echo shell; exit 3\n", (3, b"shell\n")),
        ("nogui:QUBESRPC qubes.VMShell dom0", b"echo shell\n", (0, b"shell\n")),
        ("QUBESRPC qubes.VMExec+printf+-25s-7C+a-20b+--c dom0", b"", (0, b"a b|-c|")),
        ("QUBESRPC qubes.VMExecGUI+cat dom0", b"in", (0, b"in")),
        ("nogui:echo plain", b"", (0, b"plain\n")),
    ],
)
def test_services_that_are_commands(
    world: World, agent: FakeAgent, command: str, data: bytes, result: tuple[int, bytes]
) -> None:
    start(world)
    code, out, err = world.run(command, data)
    assert ((code, out), err) == (result, b"")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("QUBESRPC qubes.Filecopy+ dom0", b"the service qubes.Filecopy needs Crannog's agent in the VM"),
        ("QUBESRPC qubes.VMExec+a-2 dom0", b"is no encoded command"),
        ("QUBESRPC qubes.VMExec+a-00 dom0", b"is no encoded command"),
        ("echo \udcff", b"in UTF-8 only"),
    ],
)
def test_what_it_cannot_do_is_refused(world: World, agent: FakeAgent, command: str, reason: bytes) -> None:
    start(world)
    code, out, err = world.run(command)
    assert (code, out) == (125, b"")
    assert reason in err
    assert "guest-exec" not in [name for name, _ in agent.requests]


def test_a_system_that_forbids_commands(world: World, agent: FakeAgent) -> None:
    allowed = [{"name": name, "enabled": name != "guest-exec"} for name in COMMANDS]
    agent.answers["guest-info"] = lambda *_: returns({"version": "8", "supported_commands": allowed})
    start(world)
    code, _, err = world.run("true")
    assert (code, err) == (125, b"QEMU's guest agent in 'vm1' may not run commands: its system forbids guest-exec\n")


def test_windows(world: World, agent: FakeAgent) -> None:
    agent.answers["guest-get-osinfo"] = lambda *_: returns({"id": "mswindows"})
    start(world)
    code, _, err = world.run("dir")
    assert (code, err) == (125, b"'vm1' runs Windows: commands are run there by Crannog's agent alone\n")


def test_a_caller_that_goes_away_ends_its_command(world: World, agent: FakeAgent) -> None:
    start(world)
    mark = world.folder / "mark"
    call = world.call(f"echo $$ > {mark}; exec sleep 60", stdin=subprocess.DEVNULL)
    wait_until(lambda: mark.exists() and mark.read_text().endswith("\n"))
    call.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{mark.read_text().strip()}"))
    assert world.run("echo on") == (0, b"on\n", b"")
    time.sleep(0.3)
    started = [name for name, _ in agent.requests].count("guest-exec")
    assert started == 3, "the command, what ended it, which nobody ends, and the last one"


def test_ours_takes_over_when_it_comes(world: World, agent: FakeAgent) -> None:
    start(world)
    late = world.call("sleep 0.5; echo from qemu", stdin=subprocess.DEVNULL)
    wait_until(lambda: "guest-exec" in [name for name, _ in agent.requests])
    world.start_agent()
    wait_until(world.is_ready)
    assert "qemu" not in read_status(world.rpc_socket, 5)
    count = len(agent.requests)
    assert world.run("echo ours; id -un")[:2] == (0, b"ours\nroot\n")
    assert late.communicate(timeout=60)[0] == b"from qemu\n"
    assert [name for name, _ in agent.requests[count:] if name == "guest-exec"] == []
    wait_until(lambda: not agent.is_connected)


def test_ours_is_given_time_and_then_nothing_more_is_loaded(world: World, agent: FakeAgent) -> None:
    start_process(world, patience=30)
    wait_until(lambda: "guest-get-osinfo" in [name for name, _ in agent.requests])
    world.start_agent()
    wait_until(world.is_ready)
    assert world.run("echo ours")[1] == b"ours\n"


def test_it_comes_in_when_ours_has_gone(world: World, agent: FakeAgent) -> None:
    start_process(world)
    ours = world.start_agent()
    wait_until(world.is_ready)
    ours.kill()
    ours.wait()
    with socket.socket(socket.AF_UNIX) as guest:  # what is left of it: half a frame, then another program's bytes
        guest.connect(world.guest_port)
        guest.sendall(b"x" * 100)
        wait_until(lambda: state(world) == "fallback")
    assert world.run("echo qemu") == (0, b"qemu\n", b"")


def test_power_off(world: World, agent: FakeAgent) -> None:
    import asyncio

    from crannog.rpc.link import RpcLink

    start(world)
    asyncio.run(RpcLink(world.rpc_socket).power_off())
    wait_until(lambda: ("guest-shutdown", {"mode": "powerdown"}) in agent.requests)


# -- agents that fail


def test_an_agent_that_is_started_again_has_lost_its_commands(world: World, agent: FakeAgent) -> None:
    start(world)
    call = world.call("sleep 60", stdin=subprocess.DEVNULL)
    wait_until(lambda: "guest-exec-status" in [name for name, _ in agent.requests])
    agent.forget()
    _, err = call.communicate(timeout=60)
    assert call.returncode == 125
    assert b"does not exist" in err
    assert world.run("echo on")[1] == b"on\n"


def test_an_agent_that_falls_silent_is_lost_and_found_again(world: World, agent: FakeAgent) -> None:
    start(world)
    agent.is_deaf = True
    code, _, err = world.run("true")
    assert code == 125
    assert b"is gone (it does not answer); run the command again" in err
    assert state(world) == "waiting"
    agent.is_deaf = False
    wait_until(lambda: state(world) == "fallback")
    assert world.run("echo on")[1] == b"on\n"


def test_a_guest_that_reads_nothing_for_a_while_is_found_again(world: World, agent: FakeAgent) -> None:
    start(world)
    agent.awake.clear()
    code, _, err = world.run("true")
    assert code == 125
    assert b"is gone (it does not answer)" in err
    count = len(agent.requests)
    agent.awake.set()
    wait_until(lambda: state(world) == "fallback")
    names = [name for name, _ in agent.requests[count:]]
    assert names.count("guest-sync-delimited") <= 2, "what nobody has read is not repeated"
    assert world.run("echo on")[1] == b"on\n"


def test_an_agent_that_goes_while_nobody_calls_is_missed(world: World, agent: FakeAgent) -> None:
    start(world)
    agent.is_deaf = True
    wait_until(lambda: state(world) == "waiting")


ODD: list[bytes] = [
    b"\n",
    b"nonsense\n",
    b"\xff" * 70_000 + b"\n",
    returns(5),
    returns({"pid": 0}),
    returns({"pid": "1; reboot"}),
    b"[" * 60_000 + b"\n",
    b"x" * 100_000,
    returns({"pid": 77}) + returns({"pid": 78}),
    b'\xff{"return": 1}\n',
]


@pytest.mark.parametrize("odd", ODD)
def test_nonsense_in_place_of_a_process_ends_the_call_alone(world: World, agent: FakeAgent, odd: bytes) -> None:
    process = start(world)
    agent.answers["guest-exec"] = lambda *_: odd
    code, out, err = world.run("true")
    assert (code, out) == (125, b""), err
    assert err
    agent.answers.clear()
    assert world.run("echo on")[1] == b"on\n"
    assert process.poll() is None


def test_an_output_without_end_does_not_stay_in_memory(world: World, agent: FakeAgent) -> None:
    process = start(world)
    before = memory_of(process.pid)
    line = b'{"return": {"out-data": "' + b"A" * (2 * BIG_LINE_MAX)

    def flood(agent: FakeAgent, _name: str, _arguments: dict[str, object]) -> bytes:
        agent.push(line)
        return b""

    agent.answers["guest-exec-status"] = flood
    code, _, err = world.run("true")
    assert (code, b"is too long" in err) == (125, True), err
    agent.answers.clear()
    wait_until(lambda: state(world) == "fallback")
    assert memory_of(process.pid) - before < 2 * BIG_LINE_MAX
    assert world.run("echo on")[1] == b"on\n"


def test_an_answer_that_trickles_is_given_up_on(world: World, agent: FakeAgent) -> None:
    code = HASTY.replace("sys.exit", "qga_port.ANSWER_MAX = 1.5\nsys.exit")
    world.start_relay()
    names = ["--name", "vm1", "--channel", world.host_port, "--listen", world.rpc_socket]
    world.start("-c", code, "0.1", *names)
    wait_until(lambda: state(world) == "fallback")

    def trickle(agent: FakeAgent, _name: str, _arguments: dict[str, object]) -> bytes:
        for _ in range(30):
            agent.push(b" ")
            time.sleep(0.1)
        return b""

    agent.answers["guest-exec-status"] = trickle
    begun = time.monotonic()
    result, _, err = world.run("true")
    assert (result, b"does not answer" in err) == (125, True)
    assert time.monotonic() - begun < 30


def test_stale_answers_are_dropped(world: World, agent: FakeAgent) -> None:
    def stale(_agent: FakeAgent, _name: str, arguments: dict[str, object]) -> bytes:
        return b'\xff{"return": 1}\n' + returns({"pid": 5}) + b"\xff" + returns(arguments["id"])

    agent.answers["guest-sync-delimited"] = stale
    start(world)
    assert world.run("echo on")[1] == b"on\n"


def test_a_number_that_nobody_sent_is_no_answer(world: World, agent: FakeAgent) -> None:
    agent.answers["guest-sync-delimited"] = lambda *_: b"\xff" + returns(1)
    start_process(world)
    wait_until(lambda: len(agent.requests) >= 5)
    assert state(world) == "waiting"
    assert {name for name, _ in agent.requests} == {"guest-sync-delimited"}


@pytest.mark.parametrize("info", [fails("no"), returns([]), returns({"supported_commands": "guest-exec"})])
def test_an_agent_that_does_not_say_what_it_is_is_not_used(world: World, agent: FakeAgent, info: bytes) -> None:
    agent.answers["guest-info"] = lambda *_: info
    start_process(world)
    wait_until(lambda: [name for name, _ in agent.requests].count("guest-info") >= 2)
    assert state(world) == "waiting"


def test_what_serves_an_ordinary_vm_has_loaded_nothing_of_it(world: World, agent: FakeAgent) -> None:
    code = "import sys; from crannog.rpc import vm_process; vm_process.main(sys.argv[1:]); print(*sys.modules)"
    world.start_relay()
    names = ["--name", "vm1", "--channel", world.host_port, "--listen", world.rpc_socket]
    out = world.folder / "modules"
    with out.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code, *names], stdout=file, stdin=subprocess.DEVNULL)
    world.children.append(process)
    world.start_agent()
    wait_until(world.is_ready)
    assert world.run("echo ours")[1] == b"ours\n"
    world.children[0].kill()  # the relay: the VM has ended
    process.wait(60)
    loaded = out.read_text().split()
    assert "crannog.rpc.vm_process" in loaded
    assert [name for name in loaded if "qga" in name] == ["crannog.core.qga"]
    assert agent.requests == []


def test_a_vm_without_the_port_is_served_as_ever(world: World) -> None:
    start_process(world)
    world.start_agent()
    wait_until(world.is_ready)
    assert world.run("echo ours")[1] == b"ours\n"
