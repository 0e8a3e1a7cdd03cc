"""Services that the host starts: look-up, kinds, environment, configuration, refusals."""

import os
import pwd
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.guest import agent as agent_module
from crannog.rpc import frames
from tests.unit.agent_world import PYTHON, AgentWorld, spins
from tests.unit.rpc_world import wait_until

pytestmark = pytest.mark.timeout(60)
USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentWorld]:
    world = AgentWorld(tmp_path_factory.mktemp("agent"))
    yield world
    world.close()


def serve(path: Path | None, talk: Callable[[socket.socket], object]) -> int:
    """Let `talk` have the next connection to a unix socket, or to a TCP port, which is returned."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(str(path) if path else ("127.0.0.1", 0))
    listener.listen()
    listener.settimeout(20)

    def run() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            talk(connection)

    threading.Thread(target=run, daemon=True).start()
    return 0 if path else int(listener.getsockname()[1])


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    return b"".join(parts)


def echo(connection: socket.socket) -> None:
    """Answer all that came, once it has ended."""
    connection.sendall(b"got:" + read_all(connection))


def call(name: str, user: str = USER, source: str = "work") -> str:
    return f"{user}:QUBESRPC {name} {source}"


def test_the_first_folder_wins_and_the_argument_before_all_folders(world: AgentWorld) -> None:
    world.write_service("t.Order", "#!/bin/sh\necho first-plain\n", folder=0)
    world.write_service("t.Order", "#!/bin/sh\necho second-plain\n", folder=1)
    world.write_service("t.Order+a", "#!/bin/sh\necho second-a\n", folder=1)
    assert world.run(call("t.Order+a"))[1] == b"second-a\n"
    assert world.run(call("t.Order+b"))[1] == b"first-plain\n"
    world.write_service("t.Order+a", "#!/bin/sh\necho first-a\n", folder=0)
    assert world.run(call("t.Order+a"))[1] == b"first-a\n"


def test_the_environment_and_the_argument(world: AgentWorld) -> None:
    world.write_service("t.Env", '#!/bin/sh\necho "$#:$1"; env | grep ^QREXEC_ | sort; id -un; pwd\n')
    code, out, err = world.run(call("t.Env+x-1_y"))
    home = pwd.getpwnam(USER).pw_dir
    assert (code, err) == (0, b"")
    assert out.decode().splitlines() == [
        "1:x-1_y",
        f"QREXEC_AGENT_PID={world.agent.pid}",
        "QREXEC_REMOTE_DOMAIN=work",
        "QREXEC_REQUESTED_TARGET_TYPE=",
        "QREXEC_SERVICE_ARGUMENT=x-1_y",
        "QREXEC_SERVICE_FULL_NAME=t.Env+x-1_y",
        f"QREXEC_SERVICE_PATH={':'.join(map(str, world.services))}",
        USER,
        home,
    ]


def test_an_empty_argument_is_in_the_environment_alone(world: AgentWorld) -> None:
    world.write_service("t.Empty", '#!/bin/sh\necho "$#"; echo "${QREXEC_SERVICE_ARGUMENT-none}"\n')
    assert world.run(call("t.Empty+"))[1] == b"0\n\n"
    assert world.run(call("t.Empty"))[1] == b"0\nnone\n"


def test_a_file_without_an_interpreter_line_is_a_shell_script(world: AgentWorld) -> None:
    world.write_service("t.Plain", "echo plain $1\nexit 7\n")
    assert world.run(call("t.Plain+x")) == (7, b"plain x\n", b"")


@pytest.mark.parametrize("name", ["t.None+", "t.None+x"])
def test_a_missing_service_is_127(world: AgentWorld, name: str) -> None:
    assert world.run(call(name)) == (127, b"", b"the guest has no service 't.None'\n")


@pytest.mark.parametrize(
    "request_", ["+x work", " work", "t.X", "t.X ", "../t.X+ work", ".t+ work", "t.X+;id work", "t.X+ a/b", "t.X+ a b"]
)
def test_names_that_are_none_are_125(world: AgentWorld, request_: str) -> None:
    code, out, err = world.run(f"{USER}:QUBESRPC {request_}")
    assert (code, out) == (125, b"")
    assert b"names no service" in err


def test_long_names(world: AgentWorld) -> None:
    world.write_service("t.Long", "#!/bin/sh\necho ${#1}\n")
    assert world.run(call("t.Long+" + "x" * 300))[:2] == (0, b"300\n")
    code, _, err = world.run(call("t" * 256 + "+"))
    assert code == 125
    assert b"at most 255" in err


def test_a_file_that_is_no_program_is_125(world: AgentWorld) -> None:
    world.write_service("t.NotExecutable", "#!/bin/sh\n", mode=0o644)
    (world.services[1] / "t.Folder").mkdir()
    (world.services[1] / "t.Dangling").symlink_to("/nonexistent/x")
    for name in ("t.NotExecutable", "t.Folder", "t.Dangling"):
        code, out, err = world.run(call(name + "+"))
        assert (code, out) == (125, b"")
        assert name.encode() in err


def test_a_link_to_a_program_is_followed(world: AgentWorld) -> None:
    (world.services[1] / "t.Link").symlink_to(world.write_service("t.Linked", "#!/bin/sh\necho linked\n"))
    assert world.run(call("t.Link+"))[1] == b"linked\n"


def test_binary_data_both_ways_and_stderr(world: AgentWorld) -> None:
    world.write_service("t.Cat", "#!/bin/sh\necho note >&2\nexec cat\n")
    data = bytes(range(256)) * 256
    assert world.run(call("t.Cat+"), data) == (0, data, b"note\n")


def test_nogui_is_taken_off_services_and_commands(world: AgentWorld) -> None:
    world.write_service("t.NoGui", "#!/bin/sh\necho served\n")
    assert world.run(f"{USER}:nogui:QUBESRPC t.NoGui+ work")[1] == b"served\n"
    assert world.run(f"{USER}:nogui:echo shell")[1] == b"shell\n"


def test_a_unix_socket_gets_the_descriptor_then_the_data(world: AgentWorld) -> None:
    serve(world.services[1] / "t.Socket", echo)
    assert world.run(call("t.Socket+arg"), b"\0data\xff") == (0, b"got:t.Socket+arg work\0\0data\xff", b"")


def test_the_descriptor_can_be_left_out(world: AgentWorld) -> None:
    serve(world.services[1] / "t.Bare", echo)
    world.write_config("t.Bare", "skip-service-descriptor = true\n")
    assert world.run(call("t.Bare+arg"), b"data") == (0, b"got:data", b"")


def test_a_sockets_stderr_ends_at_once_and_half_closing_works_both_ways(world: AgentWorld) -> None:
    def talk_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        (world.folder / "late").write_bytes(read_all(connection))

    serve(world.services[1] / "t.Half", talk_first)
    stream = world.start(call("t.Half+"))
    assert world.expect(stream, frames.DATA_STDERR).body == b""
    assert world.expect(stream, frames.DATA_STDOUT).body == b"bye"
    assert world.expect(stream, frames.DATA_STDOUT).body == b""
    assert world.is_quiet(stream)
    assert not spins(world.agent.pid)
    world.send(stream, frames.DATA_STDIN, b"late data")
    world.send(stream, frames.DATA_STDIN)
    assert world.expect(stream, frames.DATA_EXIT_CODE).body == bytes(4)
    late = world.folder / "late"
    wait_until(lambda: late.exists() and late.read_bytes().endswith(b"late data"))


def test_a_socket_that_is_closed_ends_the_call_though_input_is_open(world: AgentWorld) -> None:
    serve(world.services[1] / "t.Closing", lambda connection: connection.sendall(b"x"))
    assert world.finish(world.start(call("t.Closing+"))) == (0, b"x", b"")


def test_exit_on_client_eof_ends_a_call_whose_service_goes_on(world: AgentWorld) -> None:
    over = threading.Event()
    serve(world.services[1] / "t.ClientEof", lambda connection: (read_all(connection), over.wait(20)))
    world.write_config("t.ClientEof", "exit-on-client-eof = true  # at once\n")
    assert world.run(call("t.ClientEof+"), b"x") == (0, b"", b"")
    over.set()


def test_exit_on_service_eof_ends_a_call_whose_client_goes_on(world: AgentWorld) -> None:
    over = threading.Event()

    def end_output(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        over.wait(20)

    serve(world.services[1] / "t.ServiceEof", end_output)
    world.write_config("t.ServiceEof", "exit-on-service-eof=true\n")
    assert world.finish(world.start(call("t.ServiceEof+"))) == (0, b"", b"")
    over.set()


def test_a_socket_nobody_listens_on_is_125(world: AgentWorld) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(world.services[1] / "t.Stale"))
    code, out, err = world.run(call("t.Stale+"))
    assert (code, out) == (125, b"")
    assert b"t.Stale cannot be reached: Connection refused" in err


@pytest.mark.parametrize(
    ("link", "argument"),
    [
        ("/dev/tcp/127.0.0.1/{port}", ""),
        ("/dev/tcp/127.0.0.1", "{port}"),
        ("/dev/tcp", "127.0.0.1+{port}"),
        ("/dev/tcp/", "127.0.0.1+{port}"),
    ],
)
def test_links_to_tcp_ports(world: AgentWorld, link: str, argument: str) -> None:
    port = serve(None, echo)
    path = world.services[1] / "t.Tcp"
    path.unlink(missing_ok=True)
    path.symlink_to(link.format(port=port))
    code, out, _ = world.run(call("t.Tcp+" + argument.format(port=port)), b"data")
    assert code == 0
    assert out.startswith(b"got:t.Tcp+")
    assert out.endswith(b" work\0data")


@pytest.mark.parametrize(
    ("link", "argument"),
    [
        ("/dev/tcp/127.0.0.1/22", "23"),
        ("/dev/tcp/localhost", "22"),
        ("/dev/tcp/127.0.0.1", "ssh"),
        ("/dev/tcp/127.0.0.1", ""),
        ("/dev/tcp/127.0.0.1", "0"),
        ("/dev/tcp/127.0.0.1", "65536"),
        ("/dev/tcp/127.0.0.1", "1+22"),
        ("/dev/tcp", "22"),
        ("/dev/tcp", "example.com+22"),
        ("/dev/tcp/a/b/c", ""),
    ],
)
def test_links_to_what_is_no_port_in_numbers_are_125(world: AgentWorld, link: str, argument: str) -> None:
    path = world.services[1] / "t.BadTcp"
    path.unlink(missing_ok=True)
    path.symlink_to(link)
    code, out, err = world.run(call("t.BadTcp+" + argument))
    assert (code, out) == (125, b"")
    assert err.count(b"\n") == 1


def test_an_ipv6_address_in_the_argument_has_pluses(world: AgentWorld) -> None:
    (world.services[1] / "t.Six").symlink_to("/dev/tcp")
    code, _, err = world.run(call("t.Six+++1+1"))
    assert code == 125
    assert b"('::1', 1" in err
    assert b"cannot be reached" in err


def test_a_service_waits_for_its_session_and_says_when_none_comes(world: AgentWorld) -> None:
    world.write_service("t.Session", "#!/bin/sh\necho session\n")
    world.write_config("t.Session", "wait-for-session = 1\n")
    code, out, err = world.run(call("t.Session+"))
    assert (code, out) == (125, b"")
    assert f"session.{USER} was not there".encode() in err
    assert world.run(f"{USER}:nogui:QUBESRPC t.Session+ work")[:2] == (0, b"session\n")
    stream = world.start(call("t.Session+"))
    assert world.is_quiet(stream)
    (world.folder / "sessions" / f"session.{USER}").touch()
    assert world.finish(stream) == (0, b"session\n", b"")
    (world.folder / "sessions" / f"session.{USER}").unlink()


def test_a_socket_service_waits_for_its_session_too(world: AgentWorld) -> None:
    serve(world.services[1] / "t.SocketSession", echo)
    world.write_config("t.SocketSession", "wait-for-session = true\nskip-service-descriptor = true\n")
    code, out, err = world.run(call("t.SocketSession+"))
    assert (code, out) == (125, b"")
    assert b"was not there" in err
    stream = world.start(call("t.SocketSession+"))
    world.send(stream, frames.DATA_STDIN, b"early")
    world.send(stream, frames.DATA_STDIN)
    assert world.is_quiet(stream)
    (world.folder / "sessions" / f"session.{USER}").touch()
    assert world.finish(stream) == (0, b"got:early", b"")
    (world.folder / "sessions" / f"session.{USER}").unlink()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that every user may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_force_user(open_folder: Path) -> None:
    world = AgentWorld(open_folder)
    try:
        world.write_service("t.Forced", "#!/bin/sh\nid -un; id -G\n")
        world.write_config("t.Forced", "force-user = 'nobody'\n")
        assert world.run(call("t.Forced+"))[1] == b"nobody\n65534\n"
    finally:
        world.close()


def test_an_agent_that_is_not_root_serves_its_own_user_alone(open_folder: Path) -> None:
    try:
        subprocess.run([PYTHON, "-Ic", f"open({agent_module.__file__!r})"], user="nobody", check=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("nobody may not read the agent")
    world = AgentWorld(open_folder, user="nobody")
    try:
        world.write_service("t.Who", "#!/bin/sh\nid -un\n")
        for user in ("nobody", "DEFAULT"):
            assert world.run(call("t.Who+", user)) == (0, b"nobody\n", b"")
        for line in (call("t.Who+", "root"), "root:id -un"):
            code, out, err = world.run(line)
            assert (code, out) == (126, b"")
            assert err == b"the guest's agent is not root, so it cannot run commands as 'root'\n"
        world.write_config("t.Who", "force-user = 'root'\n")
        assert world.run(call("t.Who+", "nobody"))[0] == 126
        assert "cannot call services" in (open_folder / "agent.log").read_text()
    finally:
        world.close()


def test_a_configuration_for_the_argument_comes_first(world: AgentWorld) -> None:
    world.write_service("t.Chosen", "#!/bin/sh\nid -un\n")
    world.write_config("t.Chosen", "force-user = 'no-such-user'\n", folder=0)
    world.write_config("t.Chosen+x", f"# a comment\n\n  force-user = '{USER}'\nnew-key = 1\n", folder=1)
    assert world.run(call("t.Chosen+x"))[:2] == (0, f"{USER}\n".encode())
    assert world.run(call("t.Chosen+y"))[0] == 125


@pytest.mark.parametrize(
    "content",
    [
        "wait-for-session\n",
        "wait-for-session = yes\n",
        "exit-on-client-eof = 1\n",
        "force-user = root\n",
        "force-user = ''\n",
        "force-user = 'a b'\n",
        "[section]\n",
        "wait-for-session = true\nwait-for-session = true\n",
        "force-user = 'root'\nskip-service-descriptor = true\n",
        "#" * 4097,
        "wait-for-session = tr\0ue\n",
    ],
)
def test_a_wrong_configuration_is_125_and_starts_nothing(world: AgentWorld, content: str) -> None:
    world.write_service("t.Wrong", "#!/bin/sh\necho started\n")
    world.write_config("t.Wrong", content)
    code, out, err = world.run(call("t.Wrong+"))
    assert (code, out) == (125, b"")
    assert b"configuration" in err


def test_a_service_whose_caller_goes_away_is_hung_up(world: AgentWorld) -> None:
    mark = world.folder / "mark"
    script = f"trap 'echo gone >{mark}; exit' HUP\necho begun >{mark}\nsleep 30 & wait\n"
    world.write_service("t.Sleep", "#!/bin/sh\n" + script)
    stream = world.start(call("t.Sleep+"))
    wait_until(lambda: mark.exists() and mark.read_text() == "begun\n")
    world.send(stream, frames.CLOSE)
    wait_until(lambda: mark.read_text() == "gone\n")


def test_a_socket_service_whose_caller_goes_away_sees_the_end(world: AgentWorld) -> None:
    seen = threading.Event()

    def see_the_end(connection: socket.socket) -> None:
        read_all(connection)
        seen.set()

    serve(world.services[1] / "t.Left", see_the_end)
    stream = world.start(call("t.Left+"))
    world.expect(stream, frames.DATA_STDERR)
    world.send(stream, frames.CLOSE)
    assert seen.wait(60)


def test_a_service_that_does_not_read_holds_one_window(world: AgentWorld) -> None:
    over = threading.Event()
    serve(world.services[1] / "t.Deaf", lambda _: over.wait(20))
    stream = world.start(call("t.Deaf+"))
    for _ in range(frames.WINDOW // (60000 + frames.HEADER.size)):
        world.send(stream, frames.DATA_STDIN, b"x" * 60000)
    assert world.run("DEFAULT:echo alive")[1] == b"alive\n"
    over.set()


def test_100_services_at_once(world: AgentWorld) -> None:
    world.write_service("t.Many", "#!/bin/sh\ncat; exit $1\n")
    streams = {number: world.start(call(f"t.Many+{number}")) for number in range(100)}
    for number, stream in streams.items():
        world.send(stream, frames.DATA_STDIN, b"%d" % number)
        world.send(stream, frames.DATA_STDIN)
    for number, stream in streams.items():
        assert world.finish(stream) == (number, b"%d" % number, b"")
