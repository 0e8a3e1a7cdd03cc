"""qvm-volume export, and the digests of export and import: what is written, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crannog.cli import qvm_volume
from crannog.cli.qvm_volume_content import Content
from crannog.cli.qvm_volume_digest import Digest
from crannog.errors import StorageError
from tests.unit.cli_wire import TIMEOUT, Tool, Wire, open_wire, start

BEGIN, END = "internal.vm.volume.ImportBegin+root work", "internal.vm.volume.ImportEnd+root work"
EXPORT = "crannog.vm.volume.Export+root work"
SIZE = 4 * 2**20
CONNECTED = b"1\0\0connection-established\0\0"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with open_wire(monkeypatch) as wire:
        yield wire


@pytest.fixture
def tool(wire: Wire, capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(wire, qvm_volume.COMMAND, qvm_volume._act, capsys)


def tell(wire: Wire, name: str, **details: str) -> None:
    words = ["work", name, *(word for pair in details.items() for word in pair)]
    wire.answers[EXPORT] = CONNECTED + "".join(["1\0", *(word + "\0" for word in words), "\0"]).encode()


def serve(wire: Wire, path: Path, format_: str = "raw") -> None:
    tell(wire, "export-ready", place=f"{format_} {quote(os.fsencode(path))}")


def make_chain(folder: Path) -> tuple[Path, bytes]:
    """Make an image that stands on two others, each with data of its own; return it, and what it shows."""
    whole = bytearray(SIZE + 2**20)
    base = folder / "root.1.img"
    base.write_bytes(bytes(range(256)) * (SIZE // 512) + bytes(SIZE // 2))
    whole[: SIZE // 2] = bytes(range(256)) * (SIZE // 512)
    below = base.name
    for number, (letter, place, length) in enumerate((("a", 65536, 200_000), ("b", 2**20 - 100, 70_000)), 2):
        image = folder / f"root.{number}.qcow2"
        form = "raw" if number == 2 else "qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", below, str(image), str(len(whole))]
        subprocess.run(create, check=True, timeout=20)
        writes = [f"write -P {ord(letter)} {place} {length}", f"write -P {ord(letter)} {SIZE + 2**19} 512"]
        writes += ["write -z 131072 65536"] if number == 3 else []
        command = ["qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), str(image)]
        subprocess.run(command, check=True, timeout=20, stdout=subprocess.DEVNULL)
        whole[place : place + length] = letter.encode() * length
        whole[SIZE + 2**19 : SIZE + 2**19 + 512] = letter.encode() * 512
        if number == 3:
            whole[131072 : 131072 + 65536] = bytes(65536)
        below = image.name
    return image, bytes(whole)


def test_a_chain_becomes_one_sparse_raw_file(tool: Tool, tmp_path: Path) -> None:
    image, whole = make_chain(tmp_path)
    serve(tool.wire, image, "qcow2")
    target = tmp_path / "out"
    assert tool.ok("export", "work:root", str(target)) == ""
    assert target.read_bytes() == whole
    assert target.stat().st_blocks * 512 < len(whole) - 2**20
    assert target.stat().st_mode & 0o777 == 0o600
    assert tool.ok("export", "--force", "--verify", "work:root", str(target)) == f"{sha256(whole)}  {target}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root.1.img", "root.2.qcow2", "root.3.qcow2"]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.sampled_from([0, 1, 255])), max_size=6),
    st.integers(0, 50 * 4096),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_raw_content_with_holes_anywhere(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int, int]], size: int
) -> None:
    path = tmp_path_factory.mktemp("raw") / "image"
    with path.open("wb") as file:
        for place, length, byte in parts:
            file.seek(place * 4096)
            file.write(bytes([byte]) * length * 4096)
        file.truncate(size)
    found = bytearray(size)
    with Content(str(path), "raw") as content:
        assert content.size == size
        for position, data in content.pieces():
            found[position : position + len(data)] = data
    assert bytes(found) == path.read_bytes()


def export_to_pipe(path: Path, *options: str) -> tuple[int, bytes, bytes]:
    del path
    with start("qvm_volume:main", ["export", *options, "work:root", "-"], subprocess.DEVNULL) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


def test_standard_output_gets_all_of_it(wire: Wire, tmp_path: Path) -> None:
    image, whole = make_chain(tmp_path)
    serve(wire, image, "qcow2")
    assert export_to_pipe(image) == (0, whole, b"")
    assert export_to_pipe(image, "--sha256", sha256(whole)) == (0, whole, b"")
    code, _, err = export_to_pipe(image, "--sha256", sha256(b""))
    assert (code, err.startswith(b"qvm-volume: the data have the SHA-256 ")) == (9, True)


def test_a_reader_that_goes_away_ends_it(wire: Wire, tmp_path: Path) -> None:
    image, _ = make_chain(tmp_path)
    serve(wire, image, "qcow2")
    with start("qvm_volume:main", ["export", "work:root", "-"], subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(TIMEOUT) == 141


def test_an_odd_path(tool: Tool, tmp_path: Path) -> None:
    image = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \xc3\xbc%+\n"))
    image.write_bytes(b"content")
    serve(tool.wire, image)
    tool.ok("export", "work:root", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"content"


def test_an_empty_volume(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    serve(tool.wire, tmp_path / "image")
    out = tool.ok("export", "--verify", "work:root", str(tmp_path / "out"))
    assert out == f"{sha256(b'')}  {tmp_path / 'out'}\n"


def test_what_is_refused(tool: Tool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"content")
    serve(tool.wire, image)
    (tmp_path / "there").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    other = sha256(b"x")
    for code, part, words in (
        (4, "exists already; name another file, or add --force", ("work:root", str(tmp_path / "there"))),
        (2, "is there and is no file", ("work:root", str(tmp_path / "folder"))),
        (2, "is there and is no file", ("--force", "work:root", "/dev/null")),
        (9, "cannot be written: No such file or directory", ("work:root", str(tmp_path / "none/out"))),
        (
            9,
            f"have the SHA-256 {sha256(b'content')}, and {other}",
            ("--sha256", other, "work:root", str(tmp_path / "o")),
        ),
        (2, "'abc' is no SHA-256; it has 64 hexadecimal digits", ("--sha256", "abc", "work:root", str(tmp_path / "o"))),
        (2, "--verify reads again", ("--verify", "work:root", "-")),
        (2, "'export' takes VM:VOLUME and FILE", ("work:root",)),
    ):
        tool.fails(code, part, "export", *words)
    assert (tmp_path / "there").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "image", "there"]
    tool.fails(2, "--verify is for export, not for import", "import", "--verify", "work:root", str(image))


def test_what_crannogd_refuses(tool: Tool, tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    tool.wire.refuse(EXPORT, "QubesVMNotHaltedError", "work runs")
    tool.fails(5, "work runs", "export", "work:root", target)
    tool.wire.refuse(EXPORT, "PermissionDenied", "Argument not in 'work volumes'")
    tool.fails(3, "work has no volume 'root'; 'qvm-volume list work'", "export", "work:root", target)
    tell(tool.wire, "export-failed", kind="StorageError", reason="it is damaged")
    tool.fails(9, "it is damaged", "export", "work:root", target)
    for place in ("", "raw", "raw x", "zip /x", "raw /%00"):
        tell(tool.wire, "export-ready", place=place)
        tool.fails(11, "is no place", "export", "work:root", target)
    tool.wire.answers[EXPORT] = CONNECTED
    tool.fails(11, "it does not say where the content is", "export", "work:root", target)
    serve(tool.wire, tmp_path / "none")
    tool.fails(9, "none cannot be read: No such file", "export", "work:root", target)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_image_is_no_traceback(tool: Tool, tmp_path: Path) -> None:
    image, _ = make_chain(tmp_path)
    serve(tool.wire, image, "qcow2")
    base = tmp_path / "root.1.img"
    target = tmp_path / "out"
    with Content(str(image), "qcow2") as content:
        pieces = content.pieces()
        next(pieces)
        os.truncate(base, 0)
        with pytest.raises(StorageError, match="ends too early; see 'crannog storage check'"):
            list(pieces)
    image.write_bytes(b"nonsense")
    tool.fails(9, "Image is not in qcow2 format", "export", "work:root", str(target))
    assert not target.exists()


@pytest.mark.parametrize("said", ["[]", "[{}]", "x", '[{"virtual-size": "x"}]'])
def test_a_qemu_img_that_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    image, _ = make_chain(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "qemu-img").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tools / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with (
        pytest.raises(StorageError, match="qemu-img says nothing of it that makes sense"),
        Content(str(image), "qcow2"),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match="qemu-img is not installed"), Content(str(image), "qcow2"):
        pass


# -- digests of imports


@pytest.fixture
def volume(wire: Wire, tmp_path: Path) -> Path:
    """Return the file at which crannogd wants five bytes."""
    path = tmp_path / "volume"
    path.touch()
    wire.answer(BEGIN, f"5 {path}")
    wire.answer(END)
    return path


def test_an_import_whose_digest_is_right(tool: Tool, volume: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"hello")
    tool.ok("import", "--sha256", sha256(b"hello").upper(), "work:root", str(tmp_path / "image"))
    assert volume.read_bytes() == b"hello"
    assert tool.wire.requests == [(BEGIN, b"5"), (END, b"ok")]


def test_an_import_whose_digest_is_wrong_changes_nothing(tool: Tool, volume: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"hello")
    assert volume.exists()
    words = ("import", "--sha256", sha256(b"hullo"), "work:root", str(tmp_path / "image"))
    tool.fails(9, f"work:root was not changed: the data have the SHA-256 {sha256(b'hello')}, and ", *words)
    assert tool.wire.requests[1][1].startswith(b"fail\nthe data have the SHA-256 ")


def test_a_stream_whose_digest_is_right(volume: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"hello")
    os.close(write)
    words = ["import", "--no-resize", "--sha256", sha256(b"hello"), "work:root", "-"]
    with start("qvm_volume:main", words, read) as process:
        os.close(read)
        assert process.communicate(timeout=TIMEOUT) == (b"", b"")
    assert (process.returncode, volume.read_bytes()) == (0, b"hello")


@given(st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 3_000_000)), max_size=5))
@settings(max_examples=30)
def test_zeros_that_are_passed_over_count(parts: list[bytes | int]) -> None:
    digest = Digest()
    for part in parts:
        if isinstance(part, bytes):
            digest.update(part)
        else:
            digest.skip(part)
    assert digest.text() == sha256(b"".join(p if isinstance(p, bytes) else bytes(p) for p in parts))


def test_progress_on_a_terminal(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export, and an import that crannogd does: it is followed by what the volume takes."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 2**20)
    serve(tool.wire, image)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = tool.run("export", "work:root", str(tmp_path / "out"))
    assert (code, out) == (0, "")
    assert err.endswith("\r100 %  1.0 MiB of 1.0 MiB  \n")
    info = "pool=p\nvid=v\nsize=5\nusage={}\n"
    tool.wire.answer("admin.vm.volume.Info+root work", info.format(1000))
    tool.wire.answer("crannog.vm.volume.ImportFile+root work")
    seen = iter([info.format(1000), info.format(1000 + 2**19), info.format(1000 + 2**20)])
    tool.wire.on_request = lambda: tool.wire.answer("admin.vm.volume.Info+root work", next(seen, info.format(9)))
    code, out, err = tool.run("import", "work:root", str(image))
    assert (code, out) == (0, "")
    assert " %  " in err
    tool.wire.on_request = lambda: None
    tool.wire.refuse("crannog.vm.volume.ImportFile+root work", "QubesVMNotHaltedError", "work runs")
    code, out, err = tool.run("import", "work:root", str(image))
    assert (code, err.endswith("qvm-volume: work runs\n")) == (5, True)


def test_the_map_is_asked_of_one_tool(tmp_path: Path) -> None:
    """What is expected of qemu-img map: the depth counts the images of the chain, in its order."""
    image, _ = make_chain(tmp_path)
    said = subprocess.run(
        ["qemu-img", "map", "--output=json", "-f", "qcow2", str(image)], capture_output=True, check=True, timeout=20
    )
    parts = json.loads(said.stdout)
    assert {part["depth"] for part in parts if part["data"]} == {0, 1, 2}
