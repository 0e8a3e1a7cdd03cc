"""The guest's services and tools as programs, and copies from end to end through agent and qrexec-client-vm."""

import os
import pty
import pwd
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import qfile, qrexec_client_vm, qvm_copy
from crannog.rpc import frames
from tests.unit.agent_world import AgentWorld

pytestmark = pytest.mark.timeout(60)
GUEST = Path(qfile.__file__).parent
SERVICES = GUEST / "services"
USER = pwd.getpwuid(os.geteuid()).pw_name


def run_service(name: str, *arguments: str, data: bytes = b"", **variables: str) -> tuple[int, bytes, bytes]:
    child = subprocess.run(
        [SERVICES / name, *arguments],
        input=data,
        capture_output=True,
        env=os.environ | variables,
        check=False,
        timeout=20,
    )
    return child.returncode, child.stdout, child.stderr


def encode(words: list[bytes]) -> str:
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._"
    parts = [
        "".join("--" if byte == 45 else chr(byte) if byte in plain else f"-{byte:02X}" for byte in word)
        for word in words
    ]
    return "+".join(parts)


def test_vmshell_runs_what_comes_on_stdin() -> None:
    assert run_service("qubes.VMShell", data=b"echo out; echo err >&2; exit 9\n", SHELL="/bin/sh") == (
        9,
        b"out\n",
        b"err\n",
    )


def test_vmexec_decodes_its_argument() -> None:
    words = [b"printf", b"%s|", b"-a b", b"", b"+\n'\"$x", b"\xff\xc3\xa4", b"--", b"A_.z9"]
    assert run_service("qubes.VMExec", encode(words)) == (0, b"|".join(words[2:]) + b"|", b"")


@pytest.mark.parametrize("argument", ["a b", "a-", "a-4", "a-4g", "a-ff", "-00", "a/b", "a$", "-"])
def test_vmexec_refuses_what_is_not_encoded(argument: str) -> None:
    code, out, err = run_service("qubes.VMExec", argument)
    assert (code, out) == (125, b"")
    assert b"no encoded command" in err


def test_vmexec_without_a_command() -> None:
    assert run_service("qubes.VMExec")[0] == 125
    assert run_service("qubes.VMExec", encode([b"/nonexistent/x"]))[0] == 127
    assert run_service("qubes.VMExec", encode([b"/etc/passwd"]))[0] == 126


def test_vmexec_leaves_the_command_its_signals() -> None:
    script = encode([b"sh", b"-c", b"kill -PIPE $$; echo ignored"])
    assert run_service("qubes.VMExec", script) == (-13, b"", b"")


def test_wait_for_session(tmp_path: Path) -> None:
    folder = {"CRANNOG_SESSION_FOLDER": str(tmp_path), "CRANNOG_SESSION_WAIT": "1"}
    code, _, err = run_service("qubes.WaitForSession", data=b"ann\n", **folder)
    assert code == 1
    assert b"no session of 'ann'" in err
    (tmp_path / "session.ann").touch()
    assert run_service("qubes.WaitForSession", data=b"ann\n", **folder) == (0, b"", b"")


@pytest.mark.parametrize("name", [b"", b"\n", b"../x\n", b"a b\n"])
def test_wait_for_session_of_nobody(name: bytes) -> None:
    assert run_service("qubes.WaitForSession", data=name)[0] == 1


@pytest.mark.parametrize("zone", ["+00:00", "+0000"])
def test_a_clock_that_is_right_is_left(zone: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + zone
    assert run_service("qubes.SetDateTime", data=now.encode() + b"\n") == (0, b"", b"")


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2024-02-30T00:00:00+00:00", "2024-13-01T00:00:00+00:00", "2024-01-01T24:00:00+00:00"),
        *("2024-01-01T00:00:00", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00+01:00", "2024-01-01 00:00:00+00:00"),
        *("1969-12-31T23:59:59+00:00", "x2024-01-01T00:00:00+00:00", "2024-01-01T00:00:00+00:00; reboot"),
        *("2024-01-01T00:00:61+00:00", "٢٠٢٤-01-01T00:00:00+00:00"),
    ],
)
def test_what_is_no_time_does_not_set_the_clock(text: str) -> None:
    before = time.time()
    code, _, err = run_service("qubes.SetDateTime", data=text.encode() + b"\n")
    assert code == 1
    assert b"no time such as" in err
    assert abs(time.time() - before) < 30


def test_resize_disk_knows_two_names(tmp_path: Path) -> None:
    grow = tmp_path / "grow"
    grow.write_text("#!/bin/sh\necho grow $*\n")
    grow.chmod(0o755)
    variables = {"CRANNOG_GROW_VOLUME": str(grow)}
    assert run_service("qubes.ResizeDisk", data=b"root\n", **variables)[1] == b"grow vda\n"
    assert run_service("qubes.ResizeDisk", data=b"private\n", **variables)[1] == b"grow vdb\n"
    for name in (b"", b"volatile\n", b"root private\n", b"/dev/vda\n"):
        assert run_service("qubes.ResizeDisk", data=name, **variables)[:2] == (1, b"")


class CopyWorld(AgentWorld):
    """An agent whose host connects calls of qubes.Filecopy to the agent's own service."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.incoming = folder / "home" / "QubesIncoming" / "work"
        (folder / "home").mkdir()
        tools = folder / "bin"
        tools.mkdir()
        for name in qvm_copy.TOOLS:
            (tools / name).symlink_to(qvm_copy.__file__)
        client = tools / "qrexec-client-vm"
        client.write_text(f'#!/bin/sh\nexec {qrexec_client_vm.__file__} --agent-socket={self.trigger} "$@"\n')
        client.chmod(0o755)
        receive = f"exec {qfile.__file__} receive --home={folder}/home --max-files=200\n"
        self.write_service("qubes.Filecopy", "#!/bin/sh\n" + receive)

    def copy(self, tool: str, *arguments: str, is_allowed: bool = True) -> tuple[int, bytes, list[bytes]]:
        """Run a tool; return its exit code, stderr, and what it asked for: target and service."""
        environment = os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        command = [str(self.folder / "bin" / tool), *arguments]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=self.folder)
        self.children.append(child)
        _, target, ident, name = self.take_request()
        if is_allowed:
            self.send(1000, frames.SERVICE_CONNECT, ident)
            self.relay(self.start(f"{USER}:QUBESRPC {name.decode()} work"), 1000)
        else:
            self.send(0, frames.SERVICE_REFUSED, ident)
        _, err = child.communicate(timeout=20)
        return child.returncode, err, [target, name]

    def relay(self, service: int, caller: int) -> None:
        """Do what the host does between the two streams, until the service has ended."""
        there = {service: caller, caller: service}
        while True:
            frame = self.held.pop(0) if self.held else self.next_frame()
            if frame.stream in there:
                self.send(there[frame.stream], frame.type, frame.body)
            if frame.stream == service and frame.type == frames.DATA_EXIT_CODE:
                return


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CopyWorld]:
    world = CopyWorld(tmp_path)
    yield world
    world.close()


def make_tree(folder: Path) -> None:
    (folder / "tree" / "deep" / "deeper").mkdir(parents=True)
    (folder / "tree" / "deep" / "file").write_bytes(os.urandom(700_000))
    (folder / "tree" / "deep" / "deeper" / "link").symlink_to("../file")
    (folder / "tree" / "empty").touch()


def list_tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_tree_is_copied_through_two_agents_calls(world: CopyWorld) -> None:
    make_tree(world.folder)
    (world.folder / "-single").write_text("one")
    code, err, asked = world.copy("qvm-copy-to-vm", "work", "./-single", "tree/")
    assert (code, err) == (0, b"")
    assert asked == [b"work", b"qubes.Filecopy"]
    assert list_tree(world.incoming / "tree") == list_tree(world.folder / "tree")
    assert (world.incoming / "tree/deep/file").read_bytes() == (world.folder / "tree/deep/file").read_bytes()
    assert (world.incoming / "-single").read_text() == "one"
    assert (world.folder / "tree").exists()


def test_a_move_removes_what_was_confirmed(world: CopyWorld) -> None:
    make_tree(world.folder)
    before = list_tree(world.folder / "tree")
    code, err, asked = world.copy("qvm-move", "tree")
    assert (code, err) == (0, b"")
    assert asked[0] == b"@default"
    assert list_tree(world.incoming / "tree") == before
    assert not (world.folder / "tree").exists()


def test_a_move_that_is_refused_or_fails_removes_nothing(world: CopyWorld) -> None:
    make_tree(world.folder)
    before = list_tree(world.folder / "tree")
    code, err, _ = world.copy("qvm-move-to-vm", "work", "tree", is_allowed=False)
    assert (code, err) == (126, b"Request refused\n")
    (world.incoming / "tree").mkdir(parents=True)
    code, err, _ = world.copy("qvm-move-to-vm", "work", "tree")
    assert code == 1
    assert b"has a file 'tree' from this one already" in err
    assert list_tree(world.folder / "tree") == before


def test_the_receivers_limits_are_its_own(world: CopyWorld) -> None:
    (world.folder / "many").mkdir()
    for number in range(250):
        (world.folder / "many" / str(number)).touch()
    code, err, _ = world.copy("qvm-copy", "many")
    assert code == 1
    assert b"quota" in err
    assert os.listdir(world.incoming) == []


def test_unusual_names_are_said_to_the_service(world: CopyWorld) -> None:
    path = os.fsencode(world.folder) + b"/odd\xff\n"
    with open(path, "wb") as file:
        file.write(b"x")
    code, err, asked = world.copy("qvm-copy", os.fsdecode(path))
    assert (code, err) == (0, b"")
    assert asked[1] == b"qubes.Filecopy+allow-unsafe-characters"
    assert os.listdir(os.fsencode(world.incoming)) == [b"odd\xff\n"]


def run_tool(folder: Path, tool: str, *arguments: str) -> tuple[int, str]:
    link = folder / tool
    link.symlink_to(qvm_copy.__file__)
    child = subprocess.run([link, *arguments], capture_output=True, cwd=folder, check=False, timeout=20)
    return child.returncode, child.stderr.decode()


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("qvm-copy", [], "usage: qvm-copy [--without-progress] FILE..."),
        ("qvm-copy", ["--nonsense", "x"], "usage: qvm-copy "),
        ("qvm-copy-to-vm", ["vm"], "usage: qvm-copy-to-vm [--without-progress] VM FILE..."),
        ("qvm-copy", ["missing"], "cannot read 'missing': No such file"),
        ("qvm-move", ["."], "has no name of its own"),
        ("qvm-move", ["a/.."], "has no name of its own"),
        ("qvm-copy", ["a/f", "b/f"], "two of the files are called 'f'"),
        ("qvm-copy", ["fifo"], "neither a file, a folder nor a link"),
        ("qvm-other", ["a"], "none of the names"),
    ],
)
def test_what_cannot_be_copied_is_said_before_anybody_is_asked(
    tmp_path: Path, tool: str, arguments: list[str], message: str
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").touch()
    os.mkfifo(tmp_path / "fifo")
    code, err = run_tool(tmp_path, tool, *arguments)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


def test_what_changed_after_it_was_sent_is_kept(tmp_path: Path) -> None:
    make_tree(tmp_path)
    contents = qvm_copy.Contents([str(tmp_path / "tree")])
    (tmp_path / "tree/empty").write_text("not any more")
    (tmp_path / "tree/deep/new").touch()
    kept = {os.path.relpath(path, tmp_path) for path in contents.remove()}
    assert kept == {"tree", "tree/deep", "tree/empty"}
    assert list_tree(tmp_path / "tree") == ["deep", "deep/new", "empty"]


def answer_call(world: AgentWorld, output: bytes, code: int = 0, error: bytes = b"") -> None:
    """Allow the next call; give it this output."""
    world.accept_call(500)
    world.send(500, frames.DATA_STDERR, error)
    if error:
        world.send(500, frames.DATA_STDERR)
    world.send(500, frames.DATA_STDOUT, output)
    world.send(500, frames.DATA_STDOUT)
    world.send(500, frames.DATA_EXIT_CODE, frames.NUMBER.pack(code))


def test_a_local_program_has_the_data_and_its_exit_code_counts(world: CopyWorld) -> None:
    script = "echo to-service; cat; echo to-user >&$SAVED_FD_1; exit 5"
    child = world.call_out("work", "t.S", "/bin/sh", "-c", script, stdin=subprocess.DEVNULL)
    world.accept_call(500)
    assert world.expect(500, frames.DATA_STDIN).body == b"to-service\n"
    world.send(500, frames.DATA_STDOUT, b"from-service\n")
    assert world.expect(500, frames.DATA_STDIN).body == b"from-service\n"
    for kind in (frames.DATA_STDOUT, frames.DATA_STDERR):
        world.send(500, kind)
    assert world.expect(500, frames.DATA_STDIN).body == b""
    world.send(500, frames.DATA_EXIT_CODE, frames.NUMBER.pack(3))
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (5, b"to-user\n")


def test_a_local_program_that_answers_the_service(world: CopyWorld) -> None:
    script = "read x; echo got $x; read y; echo user has $y >&$SAVED_FD_1"
    child = world.call_out("work", "t.S", "/bin/sh", "-c", script, stdin=subprocess.DEVNULL)
    world.accept_call(500)
    world.send(500, frames.DATA_STDOUT, b"first\n")
    assert world.expect(500, frames.DATA_STDIN).body == b"got first\n"
    answer_second = b"second\n"
    world.send(500, frames.DATA_STDOUT, answer_second)
    assert world.expect(500, frames.DATA_STDIN).body == b""
    for kind in (frames.DATA_STDOUT, frames.DATA_STDERR):
        world.send(500, kind)
    world.send(500, frames.DATA_EXIT_CODE, bytes(4))
    assert child.communicate(timeout=20)[0] == b"user has second\n"
    assert child.returncode == 0


def test_a_local_program_is_not_started_when_the_call_is_refused(world: CopyWorld) -> None:
    child = world.call_out("work", "t.S", "/bin/sh", "-c", f"touch {world.folder}/started", stdin=subprocess.DEVNULL)
    world.send(0, frames.SERVICE_REFUSED, world.take_request()[2])
    assert child.wait(60) == 126
    assert not (world.folder / "started").exists()


def test_a_local_program_that_cannot_be_run_is_125(world: CopyWorld) -> None:
    child = world.call_out("work", "t.S", "/nonexistent/x", stdin=subprocess.DEVNULL)
    answer_call(world, b"")
    assert child.communicate(timeout=20)[1] == b"cannot run /nonexistent/x: No such file or directory\n"
    assert child.returncode == 125


def test_a_local_program_that_does_not_read_ends_nothing(world: CopyWorld) -> None:
    child = world.call_out("work", "t.S", "/bin/true", stdin=subprocess.DEVNULL)
    world.accept_call(500)
    assert world.expect(500, frames.DATA_STDIN).body == b""
    for _ in range(3):
        world.send(500, frames.DATA_STDOUT, b"x" * 60000)
    assert world.is_quiet(500) or world.held
    for kind in (frames.DATA_STDOUT, frames.DATA_STDERR):
        world.send(500, kind)
    world.send(500, frames.DATA_EXIT_CODE, bytes(4))
    assert child.wait(60) == 0


def test_a_prefix_comes_before_the_input(world: CopyWorld) -> None:
    child = world.call_out("--prefix-data=first ", "work", "t.S")
    world.accept_call(500)
    assert child.stdin is not None
    child.stdin.write(b"second")
    child.stdin.close()
    child.stdin = None
    data = b""
    while part := world.expect(500, frames.DATA_STDIN).body:
        data += part
    assert data == b"first second"


def test_a_socket_as_stdin_is_used_both_ways(world: CopyWorld) -> None:
    import socket

    ours, theirs = socket.socketpair()
    world.clients += [ours, theirs]
    child = world.call_out("--use-stdin-socket", "work", "t.S", stdin=theirs.fileno())
    theirs.close()
    world.accept_call(500)
    ours.sendall(b"question")
    ours.shutdown(socket.SHUT_WR)
    assert world.expect(500, frames.DATA_STDIN).body == b"question"
    world.send(500, frames.DATA_STDOUT, b"answer")
    for kind in (frames.DATA_STDOUT, frames.DATA_STDERR):
        world.send(500, kind)
    world.send(500, frames.DATA_EXIT_CODE, bytes(4))
    assert child.wait(60) == 0
    assert ours.recv(100) == b"answer"
    assert ours.recv(100) == b""


@pytest.mark.parametrize(("flags", "is_clean"), [([], False), (["-t", "-T"], True), (["-tT"], True)])
def test_escape_sequences_are_filtered_when_asked(world: CopyWorld, flags: list[str], is_clean: bool) -> None:
    child = world.call_out(*flags, "work", "t.S", stdin=subprocess.DEVNULL)
    text = "a\x1b[31m\tä\r\n".encode()
    answer_call(world, text, error=text)
    assert child.communicate(timeout=20) == ((b"a_[31m\t__\r\n",) * 2 if is_clean else (text, text))


@pytest.mark.parametrize(("flags", "is_clean"), [([], True), (["--no-filter-escape-chars-stdout"], False)])
def test_a_terminal_gets_no_escape_sequences_unless_asked(world: CopyWorld, flags: list[str], is_clean: bool) -> None:
    ours, theirs = pty.openpty()
    child = world.call_out(*flags, "work", "t.S", stdin=subprocess.DEVNULL, stdout=theirs)
    answer_call(world, b"a\x1b[31m")
    assert child.wait(60) == 0
    os.close(theirs)
    assert os.read(ours, 100) == (b"a_[31m" if is_clean else b"a\x1b[31m")
    os.close(ours)


def test_a_reader_that_is_gone_ends_the_call(world: CopyWorld) -> None:
    child = world.call_out("work", "t.S")
    world.accept_call(500)
    assert child.stdout is not None
    child.stdout.close()
    child.stdout = None
    world.send(500, frames.DATA_STDOUT, b"x")
    world.expect(500, frames.CLOSE)
    assert child.wait(60) == 141


def test_a_service_that_ends_while_input_comes_is_heard(world: CopyWorld) -> None:
    with Path("/dev/zero").open("rb") as zero:
        for stream in range(500, 520):
            child = world.call_out("work", "t.S", stdin=zero.fileno())
            world.accept_call(stream)
            for _ in range(3):  # so that the agent holds input that it may not send
                world.expect(stream, frames.DATA_STDIN)
            world.send(stream, frames.DATA_STDERR, b"enough")
            world.send(stream, frames.DATA_EXIT_CODE, frames.NUMBER.pack(3))
            assert child.communicate(timeout=20) == (b"", b"enough")
            assert child.returncode == 3


def test_a_reader_that_does_not_read_still_lets_input_through(world: CopyWorld) -> None:
    child = world.call_out("work", "t.S")
    world.accept_call(500)
    for _ in range(4):
        world.send(500, frames.DATA_STDOUT, b"x" * 60000)
    assert child.stdin is not None
    child.stdin.write(b"input")
    child.stdin.flush()
    assert world.expect(500, frames.DATA_STDIN).body == b"input"
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], 10)[0]


@pytest.mark.parametrize(
    "arguments", [[], ["work"], ["--nonsense", "work", "s"], ["-x", "a", "b"], ["-p"], ["-ta", "b"]]
)
def test_wrong_arguments_are_a_usage_error(world: CopyWorld, arguments: list[str]) -> None:
    child = subprocess.run(
        [sys.executable, "-IS", qrexec_client_vm.__file__, *arguments], capture_output=True, check=False, timeout=20
    )
    assert child.returncode == 2
    assert child.stderr.startswith(b"usage: qrexec-client-vm")


def test_names_that_are_too_long_are_refused_at_once(world: CopyWorld) -> None:
    for arguments in (["x" * 64, "s"], ["x", "s" * 65000], ["-s", "y" * 64, "x", "s"]):
        child = world.call_out(*arguments, stdin=subprocess.DEVNULL)
        assert child.wait(60) == 2
        assert child.stderr is not None
        assert b"too long" in child.stderr.read()


def test_without_an_agent_the_reason_is_said(tmp_path: Path) -> None:
    child = subprocess.run(
        [qrexec_client_vm.__file__, f"--agent-socket={tmp_path}/none", "work", "s"],
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert child.returncode == 125
    assert child.stderr.decode() == f"cannot reach the guest's agent at {tmp_path}/none: No such file or directory\n"


def test_closed_standard_streams_do_not_become_the_connection(world: CopyWorld) -> None:
    command = f"exec {qrexec_client_vm.__file__} --agent-socket={world.trigger} work t.S <&- >&-"
    child = subprocess.Popen(["sh", "-c", command], stderr=subprocess.PIPE)
    world.children.append(child)
    thread = threading.Thread(target=answer_call, args=(world, b"lost", 6))
    thread.start()
    assert child.wait(60) == 6
    thread.join()
