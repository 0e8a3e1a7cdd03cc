"""Disposables for programs: what is asked of the daemon, and how commands, files and time-outs end."""

import asyncio
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import crannog.client
from crannog.client.call import run_call
from crannog.client.leases import Lease
from crannog.client.rpc import DATA_EXIT_CODE, DATA_STDERR, DATA_STDIN, DATA_STDOUT, EXEC_CMDLINE, HELLO
from crannog.errors import CrannogError, DaemonError, RpcError, UsageError, VMNotFoundError
from tests.unit.cli_world import FakeDaemon, serving

Messages = list[tuple[int, bytes]]
PATIENCE = 60


class FakeRpc:
    """An RPC process: it answers each command with the same messages, and keeps what it was sent."""

    def __init__(self, path: str, replies: Messages, *, ends: bool = True) -> None:
        self.replies, self.ends = replies, ends
        self.commands: list[bytes] = []
        self.inputs: list[bytes] = []
        self.left = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as file:
                connection.sendall(struct.pack("<III", HELLO, 4, 3))
                while (message := self._read(file))[0] != EXEC_CMDLINE:
                    pass
                self.commands.append(message[1][8:-1])
                data = b""
                while self.ends and (message := self._read(file)) != (DATA_STDIN, b""):
                    data += message[1]
                self.inputs.append(data)
                for kind, body in self.replies:
                    connection.sendall(struct.pack("<II", kind, len(body)) + body)
                file.read()
        except (OSError, struct.error):
            pass
        finally:
            self.left.set()

    @staticmethod
    def _read(file) -> tuple[int, bytes]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        kind, length = struct.unpack("<II", file.read(8))
        return kind, file.read(length)

    def close(self) -> None:
        self._listener.close()


def code(number: int) -> tuple[int, bytes]:
    return DATA_EXIT_CODE, struct.pack("<I", number)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(monkeypatch) as daemon:
        daemon.answers["admin.vm.CreateDisposable"] = "disp1"
        yield daemon


@contextmanager
def rpc(daemon: FakeDaemon, *replies: tuple[int, bytes], ends: bool = True) -> Iterator[FakeRpc]:
    served = FakeRpc(daemon.paths.rpc_socket("disp1"), list(replies), ends=ends)
    try:
        yield served
    finally:
        served.close()


async def test_a_command(daemon: FakeDaemon) -> None:
    with rpc(daemon, (DATA_STDOUT, b"out"), (DATA_STDERR, b"err"), (DATA_STDOUT, b"put"), code(3)) as guest:
        async with crannog.client.disposable("dvm", home=daemon.paths.home) as vm:
            assert vm.name == "disp1"
            result = await vm.run(["echo", "a b", "$c"], stdin=b"x" * 200000, user="root")
        assert (result.exit_code, result.stdout, result.stderr) == (3, b"output", b"err")
        assert guest.commands == [b"root:echo 'a b' '$c'"]
        assert guest.inputs == [b"x" * 200000]
    assert daemon.heard[:3] == [
        "admin.vm.CreateDisposable dvm", "crannog.vm.Lease disp1", "admin.vm.property.Set+netvm disp1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stdin", "heard"), [("d\u00e9j\u00e0\n", "d\u00e9j\u00e0\n".encode()), (b"", b""), (None, b"")]
)
async def test_what_a_command_reads(daemon: FakeDaemon, stdin: str | bytes | None, heard: bytes) -> None:
    with rpc(daemon, code(0)) as guest:
        async with crannog.client.disposable("dvm", home=daemon.paths.home) as vm:
            await vm.run("cat", stdin=stdin)
        assert guest.inputs == [heard]


async def test_a_network_is_left_alone_when_it_is_asked_for(daemon: FakeDaemon) -> None:
    with rpc(daemon):
        async with crannog.client.disposable(network=True, home=daemon.paths.home):
            daemon.settle()
    assert daemon.heard[:2] == ["admin.vm.CreateDisposable dom0", "crannog.vm.Lease disp1"]
    assert not [heard for heard in daemon.heard if "netvm" in heard]


async def test_one_that_does_not_run_is_started(daemon: FakeDaemon) -> None:
    served: list[FakeRpc] = []

    def start(_asked: object) -> str:
        served.append(FakeRpc(daemon.paths.rpc_socket("disp1"), [code(0)]))
        return ""

    daemon.answers["crannog.vm.Start"] = start
    async with crannog.client.disposable(home=daemon.paths.home) as vm:
        assert (await vm.run("true")).exit_code == 0
    assert "crannog.vm.Start+wait disp1" in daemon.heard
    served[0].close()


async def test_files(daemon: FakeDaemon) -> None:
    with rpc(daemon, (DATA_STDOUT, b"content"), code(0)) as guest:
        async with crannog.client.disposable(home=daemon.paths.home) as vm:
            await vm.write("/tmp/a b", b"data")
            assert await vm.read("-n") == b"content"
        assert guest.commands == [b"DEFAULT:sh -c 'cat >\"$0\"' '/tmp/a b'", b"DEFAULT:cat -- -n"]
        assert guest.inputs == [b"data", b""]


async def test_a_file_that_is_not_there(daemon: FakeDaemon) -> None:
    with rpc(daemon, (DATA_STDERR, b"cat: \x1b[31mno such file\n" + b"x" * 5000), code(1)):
        async with crannog.client.disposable(home=daemon.paths.home) as vm:
            with pytest.raises(RpcError, match=r"disp1: /x was not read: exit code 1, cat: _\[31mno such") as caught:
                await vm.read("/x")
    assert len(str(caught.value)) < 400


async def test_a_time_out_ends_the_command(daemon: FakeDaemon) -> None:
    with rpc(daemon, (DATA_STDOUT, b"begun")) as guest:
        async with crannog.client.disposable(home=daemon.paths.home) as vm:
            with pytest.raises(TimeoutError):
                await vm.run("sleep 1000", timeout=0.2)
            assert await asyncio.to_thread(guest.left.wait, PATIENCE)


async def test_too_much_output_ends_the_command(daemon: FakeDaemon) -> None:
    with rpc(daemon, *[(DATA_STDOUT, b"x" * 1000)] * 3, code(0)) as guest:
        async with crannog.client.disposable(home=daemon.paths.home) as vm:
            with pytest.raises(RpcError, match="has written more than 2999 bytes"):
                await vm.run("yes", max_output=2999)
            assert await asyncio.to_thread(guest.left.wait, PATIENCE)
            assert (await vm.run("yes", max_output=3000)).stdout == b"x" * 3000


async def test_input_that_is_not_read_keeps_nobody(daemon: FakeDaemon) -> None:
    with rpc(daemon, code(1), ends=False):
        async with crannog.client.disposable(home=daemon.paths.home) as vm:
            assert (await asyncio.wait_for(vm.run("false", stdin=bytes(10_000_000)), PATIENCE)).exit_code == 1


@pytest.mark.parametrize("reply", [(0x777, b"x"), (DATA_EXIT_CODE, b"xx")])
async def test_what_is_no_message_of_ours_is_passed_over(daemon: FakeDaemon, reply: tuple[int, bytes]) -> None:
    with rpc(daemon, reply, code(0)):
        async with crannog.client.disposable(home=daemon.paths.home) as vm:
            assert (await vm.run("true")).exit_code == 0


async def test_lengths_that_lie_are_refused(tmp_path: object) -> None:
    del tmp_path
    server, ours = socket.socketpair()
    with server, ours:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        server.sendall(struct.pack("<II", DATA_STDOUT, 2**31))
        from crannog.client.call import _read_message

        with pytest.raises(RpcError, match="no RPC process"):
            await _read_message(reader, "it")
        writer.close()


@pytest.mark.parametrize("line", ["DEFAULT:" + "x" * 70000, "DEFAULT:a\0b"])
async def test_commands_that_cannot_be(line: str) -> None:
    with pytest.raises(UsageError, match="a command has at most"):
        await run_call("/nowhere", line, b"", 1)


async def test_a_vm_that_is_not_there() -> None:
    with pytest.raises(RpcError, match="is not running"):
        await run_call("/nowhere", "DEFAULT:true", b"", 1)


async def test_a_refusal_of_the_daemon(daemon: FakeDaemon) -> None:
    daemon.answers["admin.vm.CreateDisposable"] = VMNotFoundError("there is no VM 'x'")
    with pytest.raises(VMNotFoundError):
        async with crannog.client.disposable("x", home=daemon.paths.home):
            pass
    assert daemon.heard == ["admin.vm.CreateDisposable x"]


async def test_one_whose_settings_are_refused_is_let_go_of(daemon: FakeDaemon) -> None:
    daemon.answers["admin.vm.property.Set"] = DaemonError("no space left")
    with pytest.raises(DaemonError):
        async with crannog.client.disposable("x", home=daemon.paths.home):
            pass
    assert daemon.heard[1:3] == ["crannog.vm.Lease disp1", "admin.vm.property.Set+netvm disp1"]
    assert daemon.heard[3:] == ["admin.vm.Kill disp1"]  # this daemon has let the lease go at once


class Held:
    """An answer that is given when `go_on` is set."""

    def __init__(self, answer: str | CrannogError) -> None:
        self._answer = answer
        self.asked, self.go_on = threading.Event(), threading.Event()

    def __call__(self, _asked: object) -> str | CrannogError:
        self.asked.set()
        self.go_on.wait(PATIENCE)
        return self._answer


async def begin(daemon: FakeDaemon, answer: Held) -> "asyncio.Task[None]":
    """Ask for a disposable, and return the task that waits for it when the daemon has heard of that."""

    async def use() -> None:
        async with crannog.client.disposable("x", home=daemon.paths.home):
            raise AssertionError("it is not waited for")

    daemon.answers["admin.vm.CreateDisposable"] = answer
    call = asyncio.create_task(use())
    assert await asyncio.to_thread(answer.asked.wait, PATIENCE)
    return call


@pytest.mark.parametrize("is_late", [False, True])
async def test_one_that_nobody_waits_for_is_let_go_of_when_it_is_there(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Given up while it is created; and just then, when it is there, but nobody has looked."""
    answer, let_go, close_lease = Held("disp1"), threading.Event(), Lease.close

    def close(lease: Lease) -> None:
        close_lease(lease)
        let_go.set()

    monkeypatch.setattr(Lease, "close", close)
    call = await begin(daemon, answer)
    if is_late:
        answer.go_on.set()
        deadline = time.monotonic() + PATIENCE
        while "crannog.vm.Lease disp1" not in daemon.heard and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop shall not go on
        time.sleep(0.1)  # noqa: ASYNC251
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    answer.go_on.set()
    assert await asyncio.to_thread(let_go.wait, PATIENCE)


async def test_a_refusal_that_nobody_waits_for_is_nothing(daemon: FakeDaemon) -> None:
    answer = Held(DaemonError("no space left"))
    call = await begin(daemon, answer)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    answer.go_on.set()
    daemon.settle()
    assert daemon.heard == ["admin.vm.CreateDisposable x"]


async def test_dom0_is_no_template() -> None:
    with pytest.raises(UsageError, match="dom0 is no template"):
        async with crannog.client.disposable("dom0"):
            pass


def test_tools_do_not_load_it() -> None:
    script = (
        "import crannog.client.connection, sys; print('asyncio' in sys.modules, hasattr(crannog.client, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"False False\n"
