"""Calls of a VM with somebody else's agent: policy, services of the host, ways to other VMs."""

import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from tests.processes import is_alive, list_children
from tests.unit.guest_peer import policy_stand_in
from tests.unit.qrexec_world import (
    CONNECT,
    DOMAIN,
    EXEC,
    EXIT,
    NAME,
    SECONDS,
    STDERR,
    STDIN,
    STDOUT,
    TRIGGER2,
    TRIGGER3,
    Agent,
    Daemon,
    Peer,
    Server,
    client,
    daemon_and_agent,
    install,
    lend_folder,
    wait_until,
)

OTHER = "domain-43"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from lend_folder()


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "home").mkdir()
    with policy_stand_in(tmp_path / "home") as log:
        yield log


def with_policy(folder: Path) -> str:
    return f"--policy-socket={Paths(str(folder / 'home')).policy_socket}"


@pytest.fixture
def pair(tmp_path: Path, asked: Path) -> Iterator[tuple[Daemon, Agent]]:
    del asked
    with daemon_and_agent(tmp_path, with_policy(tmp_path)) as pair:
        yield pair


def test_a_service_of_the_host(pair: tuple[Daemon, Agent], asked: Path) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Echo", "cat; echo problem >&2; echo $QREXEC_REMOTE_DOMAIN $1 >&2; exit 3")
    agent.trigger("test.Echo+x")
    caller = agent.caller()
    caller.send(STDIN, b"hello\0\xff")
    caller.send(STDIN)
    assert caller.outcome() == (b"hello\0\xff", f"problem\n{NAME} x\n".encode(), 3)
    caller.close()
    assert asked.read_text().split() == [f"source={NAME}", "intended_target=dom0", "service_and_arg=test.Echo+x"]
    daemon.wait_for_no_calls()
    agent.terminated(0, 513)
    agent.trigger("test.Echo")
    assert agent.connected() == (0, 513), "the port is used again"


@pytest.mark.parametrize(("version", "kind"), [(2, TRIGGER2), (3, TRIGGER3)])
def test_requests_of_older_agents(tmp_path: Path, asked: Path, version: int, kind: int) -> None:
    install(tmp_path, "test.Big", "head -c 100000 /dev/zero")
    with daemon_and_agent(tmp_path, with_policy(tmp_path), version=version) as (_, agent):
        name, target, ident = b"test.Big", b"dom0", b"SOCKET11"
        if version == 2:
            agent.peer.send(kind, struct.pack("<64s32s32s", name, target, ident))
        else:
            agent.peer.send(kind, struct.pack("<64s32s", target, ident) + name + b"\0")
        domain, port = agent.connected()
        caller = Server(tmp_path, DOMAIN, domain, port).accept()
        caller.hello(version)
        longest = 0
        while (message := caller.next())[0] != EXIT:
            longest = max(longest, len(message[1]))
        assert longest <= (4096 if version == 2 else 65536)
    assert "service_and_arg=test.Big+" in asked.read_text()


def test_megabytes_both_ways_and_a_half_close(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Cat", "cat; sleep 0.1; echo end")
    agent.trigger("test.Cat")
    caller = agent.caller()
    data = os.urandom(5 << 20)
    writer = threading.Thread(target=_send_all, args=(caller, data))
    writer.start()
    assert caller.outcome() == (data + b"end\n", b"", 0)
    writer.join(SECONDS)


def _send_all(caller: Peer, data: bytes) -> None:
    for at in range(0, len(data), 65536):
        caller.send(STDIN, data[at : at + 65536])
    caller.send(STDIN)


def test_a_service_that_reads_nothing(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Deaf", "exec <&-; echo done")
    agent.trigger("test.Deaf")
    caller = agent.caller()
    thread = threading.Thread(target=_try_to_send, args=(caller,))
    thread.start()
    assert caller.outcome() == (b"done\n", b"", 0)
    caller.close()
    thread.join(SECONDS)
    daemon.wait_for_no_calls()


def _try_to_send(caller: Peer) -> None:
    try:
        _send_all(caller, bytes(4 << 20))
    except OSError:
        return


def test_what_is_refused(pair: tuple[Daemon, Agent], asked: Path) -> None:
    daemon, agent = pair
    for service in ("denied", "silent", "+x", ""):
        agent.trigger(service)
        assert agent.refused() == b"SOCKET11", service
    assert "service_and_arg=+x" not in asked.read_text()
    daemon.wait_for_no_calls()


def test_names_are_made_harmless(pair: tuple[Daemon, Agent], asked: Path) -> None:
    _, agent = pair
    agent.trigger("denied;$(id)\n+a b/c", "do m0'\n")
    agent.refused()
    assert asked.read_text().split("\n")[0].split() == [
        f"source={NAME}",
        "intended_target=do_m0__",
        "service_and_arg=denied___id__+a_b_c",
    ]


@pytest.mark.parametrize("ident", [b"", b"SOCK\nET", b"a\0b", b"../x", b"x" * 32])
def test_idents_that_are_none(pair: tuple[Daemon, Agent], ident: bytes) -> None:
    """They are sent back as they came, and nobody is asked."""
    _, agent = pair
    agent.trigger("test.X", ident=ident)
    assert agent.refused() == ident


def test_a_relay_says_for_whom_it_speaks(pair: tuple[Daemon, Agent], asked: Path) -> None:
    _, agent = pair
    agent.trigger("denied", source="remote-vm")
    agent.refused()
    assert "requested_source=remote-vm" in asked.read_text()


def test_a_caller_that_does_not_come(pair: tuple[Daemon, Agent]) -> None:
    """The agent says that the connection is over: nobody waits any longer."""
    daemon, agent = pair
    install(daemon.folder, "test.Echo", "cat")
    agent.trigger("test.Echo")
    domain, port = agent.connected()
    agent.terminated(domain, port)
    daemon.wait_for_no_calls()


def grandchild(folder: Path) -> int:
    wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip(), "the service runs")
    return int((folder / "pid").read_text())


def sleeping(daemon: Daemon, agent: Agent) -> tuple[Peer, int]:
    install(daemon.folder, "test.Sleep", f"echo $$ > {daemon.folder}/pid; exec sleep 60")
    agent.trigger("test.Sleep")
    caller = agent.caller()
    return caller, grandchild(daemon.folder)


def test_a_caller_that_goes_away_ends_its_call(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    caller, service = sleeping(daemon, agent)
    caller.close()
    daemon.wait_for_no_calls()
    wait_until(lambda: not is_alive(service), "the service ends")


def test_a_caller_that_talks_nonsense_ends_its_call(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    caller, service = sleeping(daemon, agent)
    caller.send(STDOUT, b"x")
    assert caller.is_closed()
    wait_until(lambda: not is_alive(service), "the service ends")


def test_the_end_of_the_agent_ends_its_calls(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    caller, service = sleeping(daemon, agent)
    agent.close()
    wait_until(lambda: not is_alive(service), "the service ends")
    daemon.wait_for_no_calls()
    assert caller.is_closed()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_daemon_leaves_nothing(tmp_path: Path, asked: Path, number: int) -> None:
    del asked
    agent = Agent(tmp_path)
    daemon = Daemon(tmp_path, with_policy(tmp_path))
    agent.accept()
    wait_until(daemon.path.exists, "it listens")
    caller, service = sleeping(daemon, agent)
    children = daemon.children()
    daemon.process.send_signal(number)
    daemon.process.wait()
    for pid in (service, *children):
        wait_until(lambda pid=pid: not is_alive(pid), "what ran for a call ends")  # type: ignore[misc]
    assert caller.is_closed()
    assert daemon.sockets() == [] or number == signal.SIGKILL
    agent.close()


def test_the_end_of_the_daemon_during_a_question(tmp_path: Path) -> None:
    install(tmp_path, "slow", "exec sleep 60")
    agent = Agent(tmp_path)
    daemon = Daemon(tmp_path, f"--policy-program={tmp_path}/services/slow")
    agent.accept()
    agent.trigger("test.X")
    wait_until(lambda: any(map(list_children, daemon.children())), "it asks")
    (child,) = filter(list_children, daemon.children())
    (program,) = list_children(child)
    daemon.process.kill()
    daemon.process.wait()
    wait_until(lambda: not is_alive(child), "the process that asks ends")
    wait_until(lambda: not is_alive(program), "the program ends")
    agent.close()


def test_the_process_of_a_call_is_killed(pair: tuple[Daemon, Agent], tmp_path: Path) -> None:
    """Before the answer that is a refusal; later the caller sees its connection end."""
    del tmp_path
    daemon, agent = pair
    caller, service = sleeping(daemon, agent)
    for pid in daemon.children():
        os.kill(pid, signal.SIGKILL)
    assert caller.is_closed()
    daemon.wait_for_no_calls()
    os.kill(service, signal.SIGKILL)
    agent.trigger("denied")
    assert agent.refused() == b"SOCKET11"


def test_many_calls_at_once(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Echo", "cat; exit $1")
    for number in range(30):
        agent.trigger(f"test.Echo+{number}", ident=b"SOCKET%d" % number)
    servers = {}
    for _ in range(30):
        kind, body = agent.peer.next()
        assert kind == CONNECT
        _, port = struct.unpack_from("<II", body)
        servers[int(body[8:].rstrip(b"\0").removeprefix(b"SOCKET"))] = Server(daemon.folder, DOMAIN, 0, port)
    callers = {number: server.accept() for number, server in servers.items()}
    for number, caller in callers.items():
        caller.hello(4)
        caller.send(STDIN, b"%d" % number)
        caller.send(STDIN)
    assert [callers[number].outcome() for number in range(30)] == [(b"%d" % n, b"", n) for n in range(30)]
    daemon.wait_for_no_calls()


def test_a_guest_cannot_start_processes_without_end(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Sleep", "exec sleep 60")
    for number in range(150):
        agent.trigger("test.Sleep", ident=b"SOCKET%d" % number)
    refused = 0
    for _ in range(150):
        refused += agent.peer.next()[0] != CONNECT
    assert refused == 22, "128 may be there at once"
    for port in range(513, 641):
        agent.terminated(0, port)
    daemon.wait_for_no_calls()


# -- to other VMs


def test_a_call_of_another_vm(pair: tuple[Daemon, Agent], tmp_path: Path) -> None:
    daemon, agent = pair
    target = Agent(tmp_path, 43)
    other = Daemon(tmp_path, domain=43, name=OTHER)
    target.accept()
    wait_until(other.path.exists, "the other daemon listens")
    agent.trigger("test.Remote+arg", OTHER)
    kind, domain, port, line = target.next_command()
    assert (kind, domain, line) == (EXEC, DOMAIN, b"user:QUBESRPC test.Remote+arg domain-42\0")
    assert port == 513, "the daemon of the higher number takes the even offsets"
    assert agent.connected() == (43, port)
    server = Server(tmp_path, DOMAIN, 43, port)
    service = target.meet(DOMAIN, port)
    caller = server.accept()
    service.send(STDOUT, b"from there")
    assert caller.next() == (STDOUT, b"from there")
    target.terminated(DOMAIN, port)
    daemon.wait_for_no_calls()
    other.close()
    target.close()


def test_a_vm_that_does_not_run_is_refused(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    agent.trigger("test.Remote", "nobody")
    assert agent.refused() == b"SOCKET11"
    assert "nobody does not run" in daemon.log.read_text()


# -- the policy's program


def with_program(folder: Path, script: str) -> str:
    install(folder, "policy", script)
    return f"--policy-program={folder}/services/policy"


def test_a_program_that_allows(tmp_path: Path) -> None:
    install(tmp_path, "test.Echo", "cat")
    answer = "user=DEFAULT\\nresult=allow\\ntarget=dom0\\nautostart=True\\nrequested_target=dom0"
    option = with_program(tmp_path, f'echo "$@" > {tmp_path}/asked; printf "{answer}"')
    with daemon_and_agent(tmp_path, option) as (_, agent):
        agent.trigger("test.Echo+a", "dom0")
        caller = agent.caller()
        caller.send(STDIN, b"x")
        caller.send(STDIN)
        assert caller.outcome() == (b"x", b"", 0)
    assert (tmp_path / "asked").read_text() == f"-- {NAME} dom0 test.Echo+a\n"


@pytest.mark.parametrize(
    "script", ["exit 1", "exit 0", "kill -9 $$", "echo result=deny", "echo result=maybe", "exec /nowhere"]
)
def test_a_program_that_does_not(tmp_path: Path, script: str) -> None:
    install(tmp_path, "test.Echo", "cat")
    with daemon_and_agent(tmp_path, with_program(tmp_path, script)) as (_, agent):
        agent.trigger("test.Echo")
        assert agent.refused() == b"SOCKET11"


def test_no_policy_at_all(tmp_path: Path) -> None:
    install(tmp_path, "test.Echo", "cat")
    with daemon_and_agent(tmp_path, f"--policy-program={tmp_path}/none") as (_, agent):
        agent.trigger("test.Echo")
        assert agent.refused() == b"SOCKET11"


def test_a_program_that_says_where_to(tmp_path: Path) -> None:
    install(tmp_path, "test.Echo", "echo $QREXEC_REQUESTED_TARGET_TYPE")
    answer = "user=DEFAULT\nresult=allow\ntarget=@adminvm\nautostart=True\nrequested_target=@default"
    with daemon_and_agent(tmp_path, with_program(tmp_path, f"printf '{answer}'")) as (_, agent):
        agent.trigger("test.Echo", "")
        assert agent.caller().outcome() == (b"keyword\n", b"", 0)


def test_a_program_that_connects_the_call_itself(tmp_path: Path) -> None:
    """As programs of old did it, with qrexec-client -c: the call is connected once, and to what they chose."""
    option = with_program(tmp_path, f"touch {tmp_path}/asked; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")
    install(tmp_path, "test.Echo", "cat")
    with daemon_and_agent(tmp_path, option) as (daemon, agent):
        agent.trigger("test.Echo", "dom0")
        wait_until((tmp_path / "asked").exists, "the program is asked")
        peer = client(daemon.path)
        peer.send(CONNECT, struct.pack("<II", 77, 600) + b"SOCKET11\0")
        assert peer.is_closed()
        assert agent.peer.next() == (CONNECT, struct.pack("<II", 77, 600) + b"SOCKET11\0"), "it is passed on as it is"
        daemon.wait_for_no_calls()
        again = client(daemon.path)
        again.send(CONNECT, struct.pack("<II", 77, 600) + b"SOCKET11\0")
        assert again.is_closed()
        agent.trigger("+", ident=b"SOCKET12")
        assert agent.refused() == b"SOCKET12", "nothing else came before"
        (tmp_path / "go").touch()


def test_a_program_that_connects_the_call_to_the_host_itself(tmp_path: Path) -> None:
    option = with_program(tmp_path, f"touch {tmp_path}/asked; exec sleep 60")
    with daemon_and_agent(tmp_path, option) as (daemon, agent):
        agent.trigger("test.Echo", "dom0")
        wait_until((tmp_path / "asked").exists, "the program is asked")
        peer = client(daemon.path)
        peer.send(CONNECT, bytes(8) + b"SOCKET11".ljust(32, b"\0"))
        assert peer.next() == (CONNECT, struct.pack("<II", DOMAIN, 513))
        assert agent.connected() == (0, 513)
        agent.terminated(0, 513)
        assert peer.is_closed()


def test_stderr_end_comes(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Quiet", "exec >&- 2>&-; sleep 0.05; exit 7")
    agent.trigger("test.Quiet")
    caller = agent.caller()
    kinds = [caller.next() for _ in range(3)]
    assert sorted(kinds[:2]) == [(STDOUT, b""), (STDERR, b"")]
    assert kinds[2] == (EXIT, struct.pack("<I", 7))
