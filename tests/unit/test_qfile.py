"""Copying files between VMs: the stream, what a receiver refuses, and what is left when a copy fails."""

import contextlib
import errno
import os
import pty
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crannog.guest import qfile
from crannog.guest.qfile import CopyError, Receiver, Sender
from tests.unit.rpc_world import wait_until

pytestmark = pytest.mark.timeout(60)
FILE, FOLDER, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def entry(name: bytes, mode: int = FILE, data: bytes = b"", size: int = -1) -> bytes:
    header = qfile.HEADER.pack(len(name) + 1, mode, len(data) if size < 0 else size, 1, 2, 3, 4)
    return header + name + b"\0" + data


def receive(stream: bytes, folder: Path, allow_any: bool = False, **limits: int) -> tuple[int, bytes]:
    """Unpack a stream into `folder`; return the code and the whole answer. Nothing hidden may stay there."""
    source, sink = os.pipe()
    writer = threading.Thread(target=write_and_close, args=(sink, stream))
    writer.start()
    fd = os.open(folder, os.O_RDONLY)
    receiver = Receiver(source, fd, **limits)
    receiver.allow_any = allow_any
    try:
        code = receiver.run()
    finally:
        os.close(source)
        os.close(fd)
        writer.join()
    assert not [name for name in os.listdir(folder) if name.startswith(".crannog")]
    return code, receiver.make_result(code)


def write_and_close(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        qfile.write_all(fd, data)
    os.close(fd)


def copy(paths: list[Path], folder: Path, allow_any: bool = True) -> None:
    """Send `paths` to a receiver in a thread of its own. Raises what the sender raises."""
    there, back = os.pipe(), os.pipe()

    def run() -> None:
        fd = os.open(folder, os.O_RDONLY)
        receiver = Receiver(there[0], fd)
        receiver.allow_any = allow_any
        code = receiver.run()
        os.close(there[0])
        write_and_close(back[1], receiver.make_result(code))
        os.close(fd)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        Sender(back[0], there[1]).run([str(path) for path in paths])
    finally:
        os.close(there[1])
        thread.join()
        os.close(back[0])


def describe(path: Path) -> object:
    """Return everything about a tree that a copy keeps."""
    facts = path.lstat()
    if path.is_symlink():
        return os.readlink(os.fsencode(path)), facts.st_mtime_ns
    if path.is_dir():
        inside = {os.fsencode(name): describe(path / name) for name in os.listdir(path)}
        return facts.st_mode & 0o777, facts.st_mtime_ns, inside
    return facts.st_mode & 0o777, facts.st_mtime_ns, path.read_bytes()


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not {0, 47} & set(name))
MODES = st.integers(0, 0o777).map(lambda mode: mode | 0o700)
TREES = st.recursive(
    st.one_of(
        st.tuples(st.just("file"), MODES, st.binary(max_size=300)),
        st.tuples(st.just("link"), st.just(0), NAMES),
    ),
    lambda children: st.tuples(st.just("folder"), MODES, st.dictionaries(NAMES, children, max_size=4)),
    max_leaves=12,
)


def plant(path: bytes, tree: tuple[str, int, object]) -> None:
    kind, mode, content = tree
    if kind == "link":
        assert isinstance(content, bytes)
        os.symlink(content, path)
    elif kind == "file":
        assert isinstance(content, bytes)
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
    else:
        assert isinstance(content, dict)
        os.mkdir(path)
        for name, child in content.items():
            plant(path + b"/" + name, child)
        os.chmod(path, mode)
    os.utime(path, ns=(10**18 + mode, 10**18 + 7 * mode), follow_symlinks=False)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(trees=st.dictionaries(NAMES, TREES, min_size=1, max_size=4))
def test_a_tree_arrives_as_it_was(trees: dict[bytes, tuple[str, int, object]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ours", Path(name) / "theirs"
        ours.mkdir()
        theirs.mkdir()
        for top, tree in trees.items():
            plant(os.fsencode(ours) + b"/" + top, tree)
        copy([ours / top for top in os.listdir(ours)], theirs)
        before, after = describe(ours), describe(theirs)
        assert isinstance(before, tuple)
        assert isinstance(after, tuple)
        assert before[2] == after[2]


def test_a_folder_that_may_not_be_written_arrives_with_its_content(tmp_path: Path) -> None:
    (tmp_path / "ours/in").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours/in/file").write_text("x")
    for name in ("ours/in", "ours"):
        (tmp_path / name).chmod(0o555)
    copy([tmp_path / "ours"], tmp_path / "theirs")
    assert stat.S_IMODE((tmp_path / "theirs/ours/in").stat().st_mode) == 0o555
    assert stat.S_IMODE((tmp_path / "theirs/ours").stat().st_mode) == 0o555
    assert (tmp_path / "theirs/ours/in/file").read_text() == "x"
    for name in ("ours/in", "ours", "theirs/ours/in", "theirs/ours"):
        (tmp_path / name).chmod(0o755)


def test_set_id_bits_do_not_arrive(tmp_path: Path) -> None:
    assert receive(entry(b"f", stat.S_IFREG | 0o6755) + qfile.END, tmp_path)[0] == 0
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o755


def test_the_answer_is_what_the_protocol_says(tmp_path: Path) -> None:
    stream = entry(b"name", data=b"data") + qfile.END
    code, answer = receive(stream, tmp_path)
    assert code == 0
    assert answer == struct.pack("<IIQI", 0, 0, zlib.crc32(stream), 4) + b"name"
    assert receive(entry(b"name") + qfile.END, tmp_path)[1][:4] == struct.pack("<I", errno.EEXIST)
    assert (tmp_path / "name").read_bytes() == b"data"


@pytest.mark.parametrize(
    "name",
    [
        *(b"/etc/x", b"../x", b"a/../../x", b"a/..", b".", b"..", b"a//b", b"a/", b"/", b"./x", b""),
        *(b"a\0b", b"a\nb", b"a\x1b[31mb", b"\xff", "a\u202eb".encode(), b"\x7f", b".crannog-copy-1"),
    ],
)
def test_names_that_lead_out_or_hide_are_refused(tmp_path: Path, name: bytes) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    stream = entry(b"a", FOLDER) + entry(name, data=b"x") + qfile.END
    assert receive(stream, inside)[0] == errno.EILSEQ
    assert os.listdir(inside) == []
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((b"l", target) for target in (b"/etc/passwd", b"..", b"../x", b"a/..", b"a/../..", b"", b"x\0y", b"./..")),
        *((b"t/l", target) for target in (b"..", b"../x", b"../t/f", b"/", b"sub/../../..")),
        *((b"t/sub/l", target) for target in (b"../..", b"../../x", b"../sub/../..", b"x/../..", b"a/..")),
    ],
)
def test_links_that_may_lead_out_are_refused(tmp_path: Path, name: bytes, target: bytes) -> None:
    stream = entry(b"t", FOLDER) + entry(b"t/sub", FOLDER) + entry(name, LINK, target) + qfile.END
    assert receive(stream, tmp_path, allow_any=True)[0] == errno.EILSEQ
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "target"), [(b"l", b"t"), (b"l", b"t/f"), (b"t/l", b"f"), (b"t/sub/l", b"../f"), (b"t/sub/l", b"..")]
)
def test_links_that_stay_inside_are_taken(tmp_path: Path, name: bytes, target: bytes) -> None:
    stream = entry(b"t", FOLDER) + entry(b"t/sub", FOLDER) + entry(name, LINK, target) + qfile.END
    assert receive(stream, tmp_path)[0] == 0
    assert os.readlink(os.fsencode(tmp_path) + b"/" + name) == target


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "out", tmp_path / "in"
    outside.mkdir()
    inside.mkdir()
    in_stream = entry(b"t", FOLDER) + entry(b"t/a", FOLDER) + entry(b"t/l", LINK, b"a") + entry(b"t/l/f") + qfile.END
    assert receive(in_stream, inside)[0] in (errno.ENOTDIR, errno.ELOOP)
    (inside / "planted").symlink_to(outside)
    for name in (b"planted", b"planted/f"):
        assert receive(entry(name) + qfile.END, inside)[0] in (errno.EEXIST, errno.ENOENT)
    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    "kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR, 0, 0xFFFF0000 | stat.S_IFBLK]
)
def test_devices_and_the_like_are_refused(tmp_path: Path, kind: int) -> None:
    assert receive(entry(b"x", kind | 0o644) + qfile.END, tmp_path)[0] == errno.EINVAL
    assert os.listdir(tmp_path) == []


def test_a_folder_has_no_data(tmp_path: Path) -> None:
    assert receive(entry(b"x", FOLDER, b"data") + qfile.END, tmp_path)[0] == errno.EINVAL


def test_times_that_are_none_are_refused(tmp_path: Path) -> None:
    stream = qfile.HEADER.pack(2, FILE, 0, 0, 10**9, 0, 0) + b"x\0" + qfile.END
    assert receive(stream, tmp_path)[0] == errno.EINVAL


@pytest.mark.parametrize(
    ("size", "code"), [(2**64 - 1, errno.EDQUOT), (2**63, errno.EDQUOT), (2**49, errno.ENOSPC), (1 << 50, errno.ENOSPC)]
)
def test_sizes_that_cannot_be_are_refused_before_a_byte_is_read(tmp_path: Path, size: int, code: int) -> None:
    assert receive(entry(b"x", size=size), tmp_path)[0] == code


def test_a_name_or_target_that_is_too_long(tmp_path: Path) -> None:
    stream = qfile.HEADER.pack(0xFFFFFFFF, FILE, 0, 0, 0, 0, 0)
    assert receive(stream, tmp_path)[0] == errno.ENAMETOOLONG
    assert receive(entry(b"x" * 300) + qfile.END, tmp_path)[0] == errno.ENAMETOOLONG
    assert receive(entry(b"x", LINK, size=2**40), tmp_path)[0] == errno.ENAMETOOLONG


def test_limits_of_files_and_bytes(tmp_path: Path) -> None:
    stream = entry(b"a", data=b"123") + entry(b"b", data=b"456") + qfile.END
    assert receive(stream, tmp_path, files_max=1)[0] == errno.EDQUOT
    assert receive(stream, tmp_path, bytes_max=5)[0] == errno.EDQUOT
    assert os.listdir(tmp_path) == []
    assert receive(stream, tmp_path, files_max=2, bytes_max=6)[0] == 0


def test_a_stream_that_is_cut_anywhere_leaves_nothing(tmp_path: Path) -> None:
    stream = entry(b"d", FOLDER) + entry(b"d/f", data=b"data") + entry(b"d/l", LINK, b"f") + entry(b"d", FOLDER)
    stream += qfile.END
    for length in range(len(stream)):
        assert receive(stream[:length], tmp_path)[0] == errno.EREMOTEIO
        assert os.listdir(tmp_path) == []
    assert receive(stream, tmp_path)[0] == 0


@settings(max_examples=200)
@given(data=st.binary(max_size=200), at=st.integers(0, 150))
def test_nothing_that_comes_breaks_a_receiver(data: bytes, at: int) -> None:
    stream = entry(b"d", FOLDER) + entry(b"d/f", data=b"data") + entry(b"d", FOLDER) + qfile.END
    with tempfile.TemporaryDirectory() as name:
        inside = Path(name) / "in"
        inside.mkdir()
        code, answer = receive(stream[:at] + data + stream[at + len(data) :], inside, allow_any=True)
        assert answer[:4] == struct.pack("<I", code)
        assert os.listdir(name) == ["in"]
        if code:
            assert os.listdir(inside) == []


def test_folders_in_folders_have_a_limit_and_can_be_removed_up_to_it(tmp_path: Path) -> None:
    def nest(depth: int) -> bytes:
        return b"".join(entry(b"/".join([b"d"] * count), FOLDER) for count in range(1, depth + 1))

    assert receive(nest(qfile.DEPTH_MAX), tmp_path)[0] == errno.EREMOTEIO
    assert receive(nest(qfile.DEPTH_MAX + 1) + qfile.END, tmp_path)[0] == errno.ENAMETOOLONG
    assert os.listdir(tmp_path) == []
    assert receive(nest(qfile.DEPTH_MAX) + qfile.END, tmp_path)[0] == 0


def test_the_same_name_twice_in_one_stream(tmp_path: Path) -> None:
    assert receive(entry(b"a") + entry(b"a") + qfile.END, tmp_path)[0] == errno.EEXIST
    assert receive(entry(b"a") + entry(b"a", FOLDER) + qfile.END, tmp_path)[0] == errno.ENOTDIR
    assert os.listdir(tmp_path) == []


def test_a_file_without_its_folder(tmp_path: Path) -> None:
    assert receive(entry(b"d/f") + qfile.END, tmp_path)[0] == errno.ENOENT


def test_what_is_there_already_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name in (b"dangling", b"folder", b"folder/f"):
        mode = FOLDER if name == b"folder" else FILE
        assert receive(entry(b"other") + entry(name, mode) + qfile.END, tmp_path)[0] in (errno.EEXIST, errno.ENOENT)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "folder"]


def test_two_copies_at_once_of_different_names_and_of_the_same(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    for number in range(2):
        (ours / f"same{number}" / "same").mkdir(parents=True)
        (ours / f"same{number}" / "same" / "f").write_text(str(number) * 100_000)
        (ours / f"different{number}").write_text(str(number) * 100_000)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    codes: list[int] = []

    def run(path: Path) -> None:
        try:
            copy([path], theirs)
            codes.append(0)
        except CopyError as problem:
            codes.append(problem.code)

    paths = [ours / "same0/same", ours / "same1/same", ours / "different0", ours / "different1"]
    threads = [threading.Thread(target=run, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 0, 0, errno.EEXIST]
    assert sorted(os.listdir(theirs)) == ["different0", "different1", "same"]
    assert len(set((theirs / "same/f").read_text())) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(path)], check=False, stderr=-3)
    if made.returncode:
        pytest.skip("only root can mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_said_and_what_was_written_is_removed(small_disk: Path) -> None:
    many = b"".join(entry(b"f%d" % number, data=b"x" * 200_000) for number in range(10))
    code, answer = receive(many + qfile.END, small_disk)
    assert code == errno.ENOSPC
    assert answer[16:].startswith(struct.pack("<I", 2) + b"f")
    assert os.listdir(small_disk) == []
    assert receive(entry(b"f", data=b"x" * 500_000) + qfile.END, small_disk)[0] == 0


def test_a_killed_receivers_leavings_are_removed_by_the_next_and_a_living_ones_are_not(tmp_path: Path) -> None:
    environment = os.environ | {"QREXEC_REMOTE_DOMAIN": "work"}
    program = [sys.executable, "-IS", qfile.__file__, "receive", f"--home={tmp_path}"]
    incoming = tmp_path / "QubesIncoming" / "work"
    receivers = []
    for number in range(2):
        child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        receivers.append(child)
        assert child.stdin is not None
        child.stdin.write(entry(b"f%d" % number, size=100))
        child.stdin.flush()
        wait_until(lambda count=number: len(list(incoming.glob(".crannog*/f*"))) == count + 1)  # type: ignore[misc]
    receivers[0].kill()
    receivers[0].communicate()
    fd = os.open(incoming, os.O_RDONLY)
    source, sink = os.pipe()
    write_and_close(sink, entry(b"third") + qfile.END)
    assert Receiver(source, fd).run() == 0
    assert [path.name for path in incoming.glob(".crannog*/f*")] == ["f1"]
    out, _ = receivers[1].communicate(b"x" * 100 + qfile.END)
    assert receivers[1].returncode == 0
    assert out[:4] == bytes(4)
    assert sorted(os.listdir(incoming)) == ["f1", "third"]
    os.close(source)
    os.close(fd)


def test_a_hung_up_receiver_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"QREXEC_REMOTE_DOMAIN": "work"}
    program = [sys.executable, "-IS", qfile.__file__, "receive", f"--home={tmp_path}"]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdin is not None
    child.stdin.write(entry(b"f", size=100))
    child.stdin.flush()
    incoming = tmp_path / "QubesIncoming" / "work"
    wait_until(lambda: list(incoming.glob(".crannog*/f")))
    child.send_signal(1)
    child.communicate()
    assert os.listdir(incoming) == []


@pytest.mark.parametrize("source", ["", ".", "..", "../x", "a/b", ".hidden", "a\nb"])
def test_a_caller_whose_name_is_none_gets_no_folder(tmp_path: Path, source: str) -> None:
    with pytest.raises(OSError, match="no name of a VM"):
        qfile.open_incoming(str(tmp_path), source)
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_place_of_the_callers_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "QubesIncoming").mkdir()
    (tmp_path / "QubesIncoming/work").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        qfile.open_incoming(str(tmp_path), "work")


def answer_to(tmp_path: Path, answer: bytes) -> None:
    """Send a file to a receiver that reads everything and then answers this. Raises what the sender raises."""
    (tmp_path / "f").write_text("data")
    there, back = os.pipe(), os.pipe()
    write_all = threading.Thread(target=lambda: read_to_end(there[0], back[1], answer))
    write_all.start()
    try:
        Sender(back[0], there[1]).run([str(tmp_path / "f")])
    finally:
        os.close(there[1])
        write_all.join()
        os.close(back[0])


def read_to_end(source: int, sink: int, answer: bytes) -> None:
    data = b""
    while not data.endswith(qfile.END):
        data += os.read(source, 65536)
    answer = answer.replace(b"CRC32---", struct.pack("<Q", zlib.crc32(data)))
    write_and_close(sink, answer)
    os.close(source)


def test_a_sender_takes_only_a_success_about_its_own_bytes(tmp_path: Path) -> None:
    answer_to(tmp_path, bytes(8) + b"CRC32---")
    answer_to(tmp_path, bytes(8) + b"CRC32---" + struct.pack("<I", 1) + b"f")
    for answer, code in (
        (bytes(16), errno.EBADMSG),
        (b"", errno.EREMOTEIO),
        (bytes(15), errno.EREMOTEIO),
        (struct.pack("<IIQ", errno.EEXIST, 0, 0), errno.EEXIST),
        (struct.pack("<IIQI", errno.ENOSPC, 0, 0, 2**32 - 1) + b"\x1b[31m", errno.ENOSPC),
    ):
        with pytest.raises(CopyError) as caught:
            answer_to(tmp_path, answer)
        assert caught.value.code == code
        assert "\x1b" not in str(caught.value)


def test_a_sender_stops_when_the_receiver_has_failed_in_the_middle(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    for number in range(50):
        (ours / f"f{number}").write_bytes(b"x" * 100_000)
    (theirs / "ours").mkdir()
    with pytest.raises(CopyError) as caught:
        copy([ours], theirs)
    assert caught.value.code == errno.EEXIST
    assert caught.value.name == b"ours"


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3 << 20))
    ours, theirs = pty.openpty()
    source = os.pipe()
    environment = os.environ | {"FILECOPY_TOTAL_SIZE": str(3 << 20)}
    program = [sys.executable, "-IS", qfile.__file__, "send", str(tmp_path / "f")]
    child = subprocess.Popen(program, stdin=source[0], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    assert child.stdout is not None
    data = child.stdout.read(2 * qfile.HEADER.size + len(b"f\0") + (3 << 20))
    os.write(source[1], struct.pack("<IIQ", 0, 0, zlib.crc32(data)))
    assert child.wait(60) == 0
    shown = os.read(ours, 1000)
    assert shown.startswith(b"sent 0 of 3 MiB\r")
    assert shown.endswith(b"sent 3 MiB, all of it has arrived\r\n")
    child.stdout.close()
    for fd in (ours, theirs, *source):
        os.close(fd)


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "theirs").mkdir()
    with pytest.raises(OSError, match="neither a file"):
        copy([tmp_path / "fifo"], tmp_path / "theirs")
    assert os.listdir(tmp_path / "theirs") == []


def test_the_tool_needs_only_what_a_minimal_python_has() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import qfile, qvm_copy, qrexec_client_vm; print(*sys.modules)"
    )
    folder = os.path.dirname(qfile.__file__)
    child = subprocess.run([sys.executable, "-IS", "-c", program, folder], stdout=-1, check=True, timeout=20)
    heavy = {"subprocess", "socket", "threading", "shutil", "json", "typing", "argparse", "tempfile", "random"}
    assert not heavy & set(child.stdout.decode().split())
