"""Commands through the real RPC process and the real agent: data, exit codes, many at once, clients that go."""

import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status, run_command
from crannog.errors import RpcError
from crannog.rpc import frames
from tests.processes import is_alive, memory_of, processor_seconds
from tests.unit.rpc_world import World, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("rpc"))
    world.start_all()
    yield world
    world.close()


def start_raw_call(world: World, command: str) -> socket.socket:
    """Start a call without a tool; nothing of its output is read."""
    client = world.connect()
    client.sendall(frames.encode_message(frames.HELLO, frames.NUMBER.pack(3)))
    line = f"DEFAULT:{command}\0".encode()
    client.sendall(frames.encode_message(frames.EXEC_CMDLINE, frames.EXEC_PARAMS + line))
    return client


def read_pid(path: Path) -> int:
    """Return the number that a command has written to `path`."""
    wait_until(lambda: path.exists() and path.read_text(encoding="ascii").strip())
    return int(path.read_text(encoding="ascii"))


def test_data_both_ways_and_the_exit_code(world: World) -> None:
    assert world.run("cat; echo oops >&2; exit 3", b"\0\xff\n") == (3, b"\0\xff\n", b"oops\n")


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("kill -9 $$", 137), ("/nonexistent/x", 127), ("/etc/passwd", 126)]
)
def test_exit_codes_are_those_of_a_shell(world: World, command: str, code: int) -> None:
    assert world.run(command)[0] == code


def test_a_command_runs_as_a_login_of_its_user(world: World) -> None:
    _, out, _ = world.run('echo "$USER $LOGNAME $HOME $(pwd) $(id -un)"; cut -d" " -f1,5 /proc/$$/stat')
    names, ids = out.decode().splitlines()
    user, logname, home, folder, effective = names.split()
    assert user == logname == effective
    assert home == folder == os.path.expanduser(f"~{user}")
    pid, group = ids.split()
    assert group == pid


def test_a_command_runs_as_the_named_user_or_not_at_all(world: World) -> None:
    code, out, complaint = world.run("id -un; id -G; kill -0 1 2>/dev/null || echo powerless", user="nobody")
    if os.geteuid() == 0:
        assert (code, out) == (0, b"nobody\n65534\npowerless\n")
    else:
        assert (code, out) == (125, b"")
        assert b"cannot run this as 'nobody'" in complaint


def test_an_unknown_user_is_a_sentence_and_125(world: World) -> None:
    assert world.run("true", user="no-such-user") == (125, b"", b"the guest has no user 'no-such-user'\n")


def test_50_mb_each_way_at_once_arrive_unchanged(world: World) -> None:
    data = os.urandom(1 << 20) * 50
    child = world.call("cat")
    assert child.stdin is not None
    assert child.stdout is not None
    writer = threading.Thread(target=lambda: (child.stdin.write(data), child.stdin.close()))  # type: ignore[union-attr]
    writer.start()
    digest = hashlib.sha256()
    while part := child.stdout.read(1 << 20):
        digest.update(part)
    writer.join()
    assert child.wait(60) == 0
    assert digest.digest() == hashlib.sha256(data).digest()


def test_20_calls_at_once_do_not_mix(world: World) -> None:
    children = [world.call(f"sleep 0.3; cat; echo {number}; exit {number}") for number in range(20)]
    for number, child in enumerate(children):
        assert child.communicate(b"%d " % number, timeout=20)[0] == b"%d %d\n" % (number, number)
        assert child.returncode == number


def test_a_stuck_reader_blocks_nobody_and_holds_one_window(world: World) -> None:
    process = world.children[1].pid
    before = memory_of(process)
    stuck = [start_raw_call(world, "cat /dev/zero") for _ in range(4)]
    started = time.monotonic()
    assert world.run("head -c 3000000 /dev/zero | wc -c")[1] == b"3000000\n"
    assert time.monotonic() - started < 20
    assert memory_of(process) - before < 4 * 2 * frames.WINDOW + (4 << 20)
    for client in stuck:
        client.close()


def test_a_command_that_does_not_read_its_input_blocks_nobody(world: World) -> None:
    lazy = world.call("sleep 20", stdin=subprocess.PIPE)
    with Path("/dev/zero").open("rb") as zero:
        full = world.call("sleep 20", stdin=zero.fileno())
    assert world.run("cat", b"x" * 300000)[1] == b"x" * 300000
    for child in (lazy, full):
        child.kill()


def test_a_command_that_closes_its_input_early_still_runs_on(world: World) -> None:
    assert world.run("exec <&-; sleep 0.2; echo done", b"x" * 2000000) == (0, b"done\n", b"")


def test_input_that_stays_open_does_not_hold_up_the_end(world: World) -> None:
    child = world.call("echo over")
    assert child.wait(60) == 0


def test_background_processes_that_hold_the_pipes_do_not_hold_up_the_end(world: World) -> None:
    started = time.monotonic()
    noisy = "(while echo noise; do :; done) & echo pid $!"
    code, out, _ = world.run(f"sleep 15 & echo pid $!; {noisy}; exit 4")
    assert code == 4
    assert time.monotonic() - started < 12
    quiet_pid, noisy_pid = [int(line.split()[1]) for line in out.splitlines() if line.startswith(b"pid")]
    assert is_alive(quiet_pid)
    os.kill(quiet_pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(noisy_pid))


def test_output_written_just_before_the_exit_is_complete_with_a_background_holder(world: World) -> None:
    code, out, _ = world.run("sleep 15 & echo $!; head -c 60000 /dev/zero; exit 4")
    pid, _, rest = out.partition(b"\n")
    os.kill(int(pid), signal.SIGKILL)
    assert (code, len(rest)) == (4, 60000)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_tool_that_ends_takes_its_command_along(world: World, tmp_path: Path, number: int) -> None:
    child = world.call(f"echo $$ >{tmp_path}/pid; sleep 60; true")
    pid = read_pid(tmp_path / "pid")
    child.send_signal(number)
    wait_until(lambda: not is_alive(pid))


def test_a_command_that_ignores_hangups_is_killed(world: World, tmp_path: Path) -> None:
    child = world.call(f"trap '' HUP; echo $$ >{tmp_path}/pid; sleep 60; true")
    pid = read_pid(tmp_path / "pid")
    child.kill()
    time.sleep(0.3)
    assert is_alive(pid)
    wait_until(lambda: not is_alive(pid))


def test_a_reader_that_goes_away_ends_the_call_as_a_broken_pipe(world: World, tmp_path: Path) -> None:
    child = world.call(f"echo $$ >{tmp_path}/pid; exec cat /dev/zero")
    pid = read_pid(tmp_path / "pid")
    assert child.stdout is not None
    child.stdout.read(10)
    child.stdout.close()
    assert child.wait(60) == 141
    wait_until(lambda: not is_alive(pid))


def test_a_tool_whose_reader_is_slow_waits_without_spinning(world: World) -> None:
    child = world.call("head -c 200000 /dev/zero", stdin=subprocess.DEVNULL)
    time.sleep(0.3)
    before = processor_seconds(child.pid)
    time.sleep(0.3)
    assert round(processor_seconds(child.pid) - before, 2) <= 0.02
    assert len(child.communicate(timeout=60)[0]) == 200000
    assert child.returncode == 0


def test_misbehaving_local_clients_are_dropped_alone(world: World) -> None:
    hello = frames.encode_message(frames.HELLO, frames.NUMBER.pack(3))
    nonsense = [
        b"GET / HTTP/1.0\r\n\r\n",
        frames.encode_message(frames.HELLO, frames.NUMBER.pack(2)),
        hello + frames.encode_message(frames.DATA_STDIN, b"x"),
        hello + frames.encode_message(frames.EXEC_CMDLINE, bytes(8) + b"no colon\0"),
        hello + frames.LOCAL_HEADER.pack(frames.EXEC_CMDLINE, 1 << 30),
        hello + hello,
    ]
    for data in nonsense:
        with world.connect() as client:
            client.sendall(data)
            client.settimeout(60)
            assert client.recv(100) == hello
            assert client.recv(100) == b""
    with world.connect() as silent:
        assert world.run("echo fine")[1] == b"fine\n"
        silent.sendall(hello[:5])


def test_absent_processes_are_named(tmp_path: Path) -> None:
    with pytest.raises(RpcError, match="not running, or has no agent"):
        run_command(str(tmp_path / "none.sock"), "DEFAULT", "true", 0, 1, 2)
    with pytest.raises(RpcError):
        read_status(str(tmp_path / "none.sock"), 1)


def test_a_command_that_is_too_long_is_refused(world: World) -> None:
    with pytest.raises(RpcError, match="at most 65000"):
        run_command(world.rpc_socket, "DEFAULT", "x" * 70000, 0, 1, 2)


def test_more_calls_than_streams_are_refused_in_words(world: World) -> None:
    held = [start_raw_call(world, "exec sleep 30") for _ in range(frames.STREAMS_MAX)]
    try:
        code, _, err = world.run("true")
        assert code == 125
        assert b"256 commands already" in err
    finally:
        for client in held:
            client.close()
    wait_until(lambda: world.run("true")[0] == 0)
