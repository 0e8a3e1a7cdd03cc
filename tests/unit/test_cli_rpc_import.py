"""The services of volume import: what is written where, what crannogd is told, and whose bytes come out."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.cli.rpc_import import BLOCK, copy, serve
from crannog.errors import StorageError
from tests.fakes import short_folder
from tests.unit.cli_wire import TIMEOUT, Wire, open_wire

BEGIN, END = "internal.vm.volume.ImportBegin+root work", "internal.vm.volume.ImportEnd+root work"
ENV = {"QREXEC_REMOTE_DOMAIN": "dom0", "QREXEC_REQUESTED_TARGET": "work"}
IMPORT, SIZED = "/etc/qubes-rpc/admin.vm.volume.Import", "/etc/qubes-rpc/admin.vm.volume.ImportWithSize"


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with open_wire(monkeypatch) as wire:
        yield wire


@pytest.fixture
def volume(wire: Wire, tmp_path: Path) -> Path:
    """Return the file at which crannogd wants five bytes."""
    path = tmp_path / "a volume"
    path.touch()
    wire.answer(BEGIN, f"5 {path}")
    wire.answer(END)
    return path


@contextmanager
def reading(data: bytes) -> Iterator[int]:
    """Return the end of a pipe from which these few bytes can be read."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    yield read
    os.close(read)


def call(data: bytes, program: str = IMPORT, argument: str = "root", **env: str) -> bytes:
    with reading(data) as source:
        return serve([program, argument], {**ENV, **env}, source)


def test_import(wire: Wire, volume: Path) -> None:
    assert call(b"hello") == b"0\0"
    assert volume.read_bytes() == b"hello"
    assert wire.requests == [(BEGIN, b""), (END, b"ok")]


def test_import_with_size(wire: Wire, volume: Path) -> None:
    assert call(b"5\nhe\no\0", SIZED) == b"0\0"
    assert volume.read_bytes() == b"he\no\0"
    assert wire.requests == [(BEGIN, b"5"), (END, b"ok")]


def test_the_caller_is_named_to_crannogd(wire: Wire, volume: Path) -> None:
    for name in (BEGIN, END):
        wire.answers[f"{name} from sys-admin"] = wire.answers.pop(name)
    assert call(b"hello", f"{IMPORT}+root", QREXEC_REMOTE_DOMAIN="sys-admin") == b"0\0"
    assert volume.read_bytes() == b"hello"
    assert all(name.endswith(" from sys-admin") for name, _ in wire.requests)


@pytest.mark.parametrize(
    "reply", [b"2\0QubesVMNotHaltedError\0trace\0work runs\0field\0", b"", b"2\0Odd", b"\xff\0\xfe"]
)
def test_refusals_of_crannogd_pass_unchanged(wire: Wire, volume: Path, reply: bytes) -> None:
    wire.answers[END] = reply
    assert call(b"hello") == reply
    wire.answers[BEGIN] = reply
    assert call(b"HELLO") == reply
    assert [name for name, _ in wire.requests] == [BEGIN, END, BEGIN]
    assert volume.read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", b"the data end after 0 bytes, but 5 were expected"),
        (b"hell", b"the data end after 4 bytes, but 5 were expected"),
        (b"hello!", b"there are more data than the 5 bytes that were expected"),
    ],
)
def test_the_wrong_number_of_bytes(wire: Wire, volume: Path, data: bytes, reason: bytes) -> None:
    assert volume.exists()
    wire.refuse(END, "StoragePoolException", "not imported")
    assert call(data) == b"2\0StoragePoolException\0\0not imported\0"
    assert wire.requests == [(BEGIN, b""), (END, b"fail\n" + reason)]


def test_what_cannot_be_written_is_told(wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    wire.answer(END)
    for path, reason in (
        (f"{tmp_path}/none", "No such file or directory"),
        (f"{tmp_path}/link", "Too many levels of symbolic links"),
        (str(tmp_path), "Is a directory"),
        ("/dev/full", "No space left on device"),
    ):
        wire.answer(BEGIN, f"5 {path}")
        assert call(b"hello") == b"0\0"
        assert wire.requests[-1] == (END, f"fail\n{path} cannot be written: {reason}".encode())
    assert not (tmp_path / "none").exists()
    assert (tmp_path / "target").read_bytes() == b""


@pytest.mark.parametrize("place", ["", "5", "5 ", "/x", "x /x", "-1 /x", "5 x", "5  /x", "5 /x\0y", "9" * 20 + " /x"])
def test_a_place_that_is_none(wire: Wire, place: str) -> None:
    wire.answer(BEGIN, place)
    wire.answer(END)
    assert call(b"hello") == b"0\0"
    assert wire.requests[1:] == [(END, b"fail\ncrannogd did not say where the data belong")]


@pytest.mark.parametrize(
    "data", [b"", b"5", b"\n", b"five\nhello", b"-5\nhello", b"5 \nhello", b"\xb25\nx", b"1" * 20 + b"\nx"]
)
def test_a_size_that_is_none(wire: Wire, data: bytes) -> None:
    reply = call(data, SIZED)
    assert reply.startswith(b"2\0ProtocolError\0ProtocolError\0a line with the size in bytes")
    assert reply.endswith(b"\0")
    assert wire.requests == []


@pytest.mark.parametrize(
    ("reply", "program", "argument", "env"),
    [
        (b"2\0QubesVMNotFoundError\0", IMPORT, "root", {"QREXEC_REQUESTED_TARGET": ""}),
        (b"2\0QubesVMNotFoundError\0", IMPORT, "root", {"QREXEC_REQUESTED_TARGET": "work name dom0"}),
        (b"2\0QubesVMNotFoundError\0", IMPORT, "root", {"QREXEC_REMOTE_DOMAIN": "a\nb"}),
        (b"2\0ProtocolError\0", IMPORT, "ro ot", {}),
        (b"2\0ProtocolError\0", IMPORT, "\udcff", {}),
        (b"2\0ProtocolError\0", IMPORT, "x+y", {}),
        (b"2\0QubesException\0", "/usr/bin/crannog-rpc-import", "root", {}),
        (b"2\0QubesException\0", "", "root", {}),
    ],
)
def test_wrong_calls_are_answered(wire: Wire, reply: bytes, program: str, argument: str, env: dict[str, str]) -> None:
    answer = call(b"hello", program, argument, **env)
    assert answer.startswith(reply)
    assert answer.endswith(b"\0")
    assert wire.requests == []


def test_no_argument_is_for_crannogd_to_refuse(wire: Wire) -> None:
    with reading(b"") as source:
        assert b"nobody expected" in serve([IMPORT], ENV, source)
    assert [name for name, _ in wire.requests] == ["internal.vm.volume.ImportBegin+ work"]


def test_crannogd_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as home:
        (home / "run").touch()
        monkeypatch.setenv("CRANNOG_HOME", str(home))
        assert call(b"hello").startswith(b"2\0QubesDaemonCommunicationError\0DaemonError\0crannogd cannot be reached")


def copy_bytes(data: bytes, path: Path, size: int) -> None:
    source = path.with_suffix(".in")
    source.write_bytes(data)
    with open(source, "rb") as file:
        copy(file.fileno(), str(path), size)


def test_zeros_become_holes(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.touch()
    data = bytes(64 * BLOCK) + b"x" * BLOCK + bytes(64 * BLOCK + 5)
    copy_bytes(data, path, len(data))
    assert path.read_bytes() == data
    assert os.stat(path).st_blocks * 512 <= 4 * BLOCK


def test_zeros_replace_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"x" * (3 * BLOCK))
    copy_bytes(bytes(2 * BLOCK) + b"y", path, 2 * BLOCK + 1)
    assert path.read_bytes()[: 2 * BLOCK + 1] == bytes(2 * BLOCK) + b"y"


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 255]), st.sampled_from([1, 511, BLOCK - 1, BLOCK, BLOCK + 1])), max_size=5
    )
)
def test_whatever_is_copied_arrives(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.mktemp("copy") / "volume"
    path.touch()
    data = b"".join(bytes([byte]) * count for byte, count in runs)
    seen: list[tuple[int, int]] = []
    with open(path.with_suffix(".in"), "w+b") as file:
        file.write(data)
        file.seek(0)
        copy(file.fileno(), str(path), len(data), lambda done, size: seen.append((done, size)))
    assert path.read_bytes() == data
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert not data or seen[-1] == (len(data), len(data))


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "volume").touch()
    source = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(StorageError, match="the data cannot be read: Is a directory"):
        copy(source, str(tmp_path / "volume"), 5)
    os.close(source)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return the program as it is installed for qrexec: a link that bears the service's name."""
    script = tmp_path / "crannog-rpc-import"
    script.write_text(f"#!{sys.executable}\nfrom crannog.cli.rpc_import import main\nmain()\n")
    script.chmod(0o755)
    link = tmp_path / "admin.vm.volume.ImportWithSize"
    link.symlink_to(script)
    return link


def start_program(program: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [program, "root"],
        env={**os.environ, **ENV},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_program(wire: Wire, volume: Path, program: Path) -> None:
    wire.answers[END] = b"0\0\xff\0"
    process = start_program(program)
    assert process.communicate(b"5\nhello", timeout=TIMEOUT) == (b"0\0\xff\0", b"")
    assert (process.returncode, volume.read_bytes()) == (0, b"hello")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_end_in_the_middle_is_told_to_crannogd(
    wire: Wire, volume: Path, program: Path, number: signal.Signals
) -> None:
    assert volume.exists()
    process = start_program(program)
    assert process.stdin
    process.stdin.write(b"5\nhel")
    process.stdin.flush()
    assert wire.arrived.acquire(timeout=TIMEOUT)
    process.send_signal(number)
    assert process.communicate(timeout=TIMEOUT) == (b"", b"")
    assert process.returncode == 130
    assert wire.requests == [(BEGIN, b"5"), (END, b"fail\nit was interrupted")]


def test_an_end_just_as_crannogd_begins_is_told_to_it(wire: Wire, volume: Path, program: Path) -> None:
    assert volume.exists()
    process = start_program(program)
    assert process.stdin
    wire.on_request = lambda: process.send_signal(signal.SIGTERM)
    process.stdin.write(b"5\nhel")
    process.stdin.flush()
    assert process.communicate(timeout=TIMEOUT) == (b"", b"")
    assert wire.requests == [(BEGIN, b"5"), (END, b"fail\nit was interrupted")]
