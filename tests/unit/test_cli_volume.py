"""qvm-volume: exact requests, and a sentence for everything that can be wrong on either side."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.cli import qvm_volume
from crannog.cli.sizes import parse_size, show_size
from crannog.cli.tool import escape
from crannog.errors import ValueRefusedError
from tests.unit.cli_wire import TIMEOUT, VMS, Tool, Wire, assert_examples_are_plain, open_wire, start

INFO = "pool=vm-pool\nvid={}\nsize=1000\nusage=10\nrw=True\nsource=\nsave_on_stop=True\n"
BEGIN, END = "internal.vm.volume.ImportBegin+root work", "internal.vm.volume.ImportEnd+root work"


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with open_wire(monkeypatch) as wire:
        yield wire


@pytest.fixture
def tool(wire: Wire, capsys: pytest.CaptureFixture[str]) -> Tool:
    for vm in ("sys-usb", "work"):
        wire.answer(f"admin.vm.volume.List+ {vm}", "root\nprivate\n")
        for name in ("root", "private"):
            wire.answer(f"admin.vm.volume.Info+{name} {vm}", INFO.format(f"{vm}-{name}"))
            wire.answer(f"admin.vm.volume.ListSnapshots+{name} {vm}")
    wire.answer("admin.vm.List+ dom0", VMS)
    wire.answer("admin.vm.volume.List+ dom0")
    wire.answer("admin.pool.List+ dom0", "vm-pool\nother\n")
    return Tool(wire, qvm_volume.COMMAND, qvm_volume._act, capsys)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("1234", 1234), ("10B", 10), ("20G", 20 * 10**9), ("20GB", 20 * 10**9), ("20GiB", 20 * 2**30),
        ("20gi", 20 * 2**30), ("512M", 512 * 10**6), ("512 MiB", 512 * 2**20), ("1KiB", 1024), ("2T", 2 * 10**12),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "+1", "1.5G", "20 X", "20GG", "20BB", "G20", "1e9", "\u0662", "9" * 20, "9" * 19 + "T"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueRefusedError):
        parse_size(text)


@given(st.text(alphabet="0123456789 kMgTiIbB.-\u00b2"))
def test_sizes_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueRefusedError):
        assert parse_size(text) >= 0


def test_sizes_are_shown_for_readers() -> None:
    assert [show_size(n) for n in (0, 1023, 1024, 1536 * 2**20, 2**50)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 GiB", "1024.0 TiB",
    ]  # fmt: skip


@given(st.text())
def test_nothing_escaped_moves_a_cursor(text: str) -> None:
    assert escape(text).isprintable()


def test_the_list(tool: Tool) -> None:
    tool.wire.answer("admin.vm.volume.ListSnapshots+root work", "1-a\n2-b\n")
    assert tool.ok("list", "work").splitlines() == [
        "POOL:VOLUME           VMNAME  VOLUME_NAME  REVERT_POSSIBLE",
        "vm-pool:work-root     work    root         Yes",
        "vm-pool:work-private  work    private      No",
    ]
    assert [line.split()[1] for line in tool.ok().splitlines()[1:]] == ["sys-usb", "sys-usb", "work", "work"]
    assert tool.ok("ls") == tool.ok("l") == tool.ok()


def test_the_list_of_a_pool(tool: Tool) -> None:
    assert len(tool.ok("list", "-p", "vm-pool").splitlines()) == 5
    assert len(tool.ok("list", "--pool=other", "work").splitlines()) == 1
    tool.fails(3, "there is no pool 'third'; 'qvm-pool list' lists the pools", "-p", "third")


def test_a_terminal_sees_each_vm_once(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert [len(line.split()) for line in tool.ok("list", "work", "sys-usb").splitlines()] == [4, 4, 3, 4, 3]
    assert [len(line.split()) for line in tool.ok("list", "--full", "work").splitlines()] == [4, 4, 4]


def test_a_vm_that_is_just_being_removed_is_left_out(tool: Tool) -> None:
    tool.wire.refuse("admin.vm.volume.Info+private work", "QubesVMNotFoundError", "there is no VM 'work'")
    assert "work" not in tool.ok("list")
    tool.fails(3, "there is no VM 'work'", "list", "work")


@pytest.mark.parametrize(
    "reply",
    [b"0\0pool", b"0\0=x\n", b"0\0a=1\na=2\n", b"0\0pool=\xff\n", b"", b"1\0", b"2\0Odd", b"0\0a=1\n\nb=2\n"],
)
def test_answers_that_make_no_sense(tool: Tool, reply: bytes) -> None:
    tool.wire.answers["admin.vm.volume.Info+root work"] = reply
    tool.fails(11, "", "info", "work:root")
    tool.fails(11, "", "list", "work")


def test_info(tool: Tool) -> None:
    tool.wire.answer("admin.vm.volume.ListSnapshots+root work", "1-a\n2-b\n")
    lines = tool.ok("info", "work:root").splitlines()
    assert lines[:3] == ["pool          vm-pool", "vid           work-root", "size          1000"]
    assert lines[-3:] == ["Available revisions (for revert): ", "  1-a", "  2-b"]
    assert tool.ok("info", "work:private").splitlines()[-1] == "Available revisions (for revert): none"
    assert tool.ok("i", "work:root", "size") == "1000\n"
    assert tool.ok("i", "work:root", "source") == "\n"
    assert tool.ok("i", "work:root", "revisions") == "1-a\n2-b\n"
    tool.fails(3, "no property 'colour'; those of work:root are pool, vid, ", "info", "work:root", "colour")


def test_what_a_server_sends_does_not_reach_the_terminal_as_control_characters(tool: Tool) -> None:
    tool.wire.answer("admin.vm.volume.Info+root work", "pool=\x1b[2J\u202e\nsize=1\n")
    tool.wire.answer("admin.vm.volume.ListSnapshots+root work", "\x1b]0;x\x07\n")
    for words in (("info", "work:root"), ("info", "work:root", "pool"), ("info", "work:root", "revisions"), ("ls",)):
        assert tool.ok(*words).replace("\n", "").isprintable()
    tool.wire.answer("admin.vm.volume.Info+root work", "size=\x1b[2J\n")
    assert "\x1b" not in tool.fails(11, "its size is", "resize", "work:root", "2000")


def test_there_is_no_such_volume(tool: Tool) -> None:
    for method in ("Info", "Clear", "Set.rw", "ListSnapshots"):
        tool.wire.refuse(f"admin.vm.volume.{method}+swap work", "PermissionDenied", "Argument not in 'work volumes'")
    sentence = "work has no volume 'swap'; 'qvm-volume list work' lists those that it has"
    for action, *rest in (("info",), ("clear", "-f"), ("resize", "1"), ("set", "rw", "no"), ("revert",)):
        tool.fails(3, sentence, action, "work:swap", *rest)


def test_a_refusal_for_another_reason_is_told_as_it_is(tool: Tool) -> None:
    tool.wire.refuse("admin.vm.volume.Info+root work", "PermissionDenied", "only 100% of you may")
    tool.fails(13, "only 100% of you may", "info", "work:root")


def test_config(tool: Tool) -> None:
    for name, value in (("rw", "False"), ("revisions_to_keep", "-1"), ("ephemeral", "yes")):
        tool.wire.answer(f"admin.vm.volume.Set.{name}+root work")
        assert tool.ok("set", "work:root", name, value) == ""
    assert [payload for _, payload in tool.wire.sent("rw", "keep", "ephemeral")] == [b"False", b"-1", b"yes"]
    tool.fails(2, "'size' of a volume cannot be changed; rw, revisions", "config", "work:root", "size", "1")
    tool.fails(2, "must be printable ASCII", "config", "work:root", "rw", "\u00e9")
    tool.wire.refuse("admin.vm.volume.Set.rw+root work", "QubesVMNotHaltedError", "work runs")
    tool.fails(5, "work runs", "c", "work:root", "rw", "no")


def test_resize(tool: Tool) -> None:
    tool.wire.answer("admin.vm.volume.Resize+root work")
    tool.ok("resize", "work:root", "2KiB")
    tool.ok("extend", "work:root", "1000")
    tool.fails(2, "work:root keeps its 1000 bytes: 999 are fewer", "resize", "work:root", "999")
    assert [payload for _, payload in tool.wire.sent("Resize")] == [b"2048", b"1000"]
    tool.ok("resize", "--force", "work:root", "999")
    assert tool.wire.sent("Resize")[2:] == [("admin.vm.volume.Resize+root work", b"999")]
    tool.fails(2, "'big' is not a size", "resize", "work:root", "big")


def test_revert(tool: Tool) -> None:
    tool.wire.answer("admin.vm.volume.Revert+root work")
    tool.fails(3, "work:root has no revision that it could go back to", "revert", "work:root")
    tool.wire.answer("admin.vm.volume.ListSnapshots+root work", "1-old\n2-new\n")
    tool.ok("rv", "work:root")
    tool.ok("r", "work:root", "1-old")
    assert [payload for _, payload in tool.wire.sent("Revert")] == [b"2-new", b"1-old"]
    tool.fails(2, "cannot be the name of a revision", "revert", "work:root", "../x")


def test_clear_asks(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.wire.answer("admin.vm.volume.Clear+private work")
    tool.fails(2, "there is no terminal to ask on; add --force", "clear", "work:private")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, is_cleared in (("\n", False), ("n\n", False), ("yes\n", True)):
        monkeypatch.setattr(sys.stdin, "readline", lambda answer=answer: answer, raising=False)
        code, out, err = tool.run("clear", "work:private")
        assert (code == 0, out, bool(tool.wire.sent("Clear"))) == (is_cleared, "", is_cleared)
        assert "This deletes all data in work:private" in err
    tool.ok("clear", "-f", "work:private")


def test_wrong_command_lines(tool: Tool) -> None:
    for part, *words in (
        ("'lst' is none of list, info", "lst"),
        ("'info' takes VM:VOLUME", "info"),
        ("'set' takes VM:VOLUME, PROPERTY and VALUE", "set", "work:root", "rw"),
        ("'clear' takes VM:VOLUME", "clear", "work:root", "work:private"),
        ("'work' names no volume; write VM:VOLUME", "info", "work"),
        ("':root' names no volume", "info", ":root"),
        ("'' cannot be the name of a volume", "info", "work:"),
        ("cannot be the name of a volume", "info", "work:a b"),
        ("--size is for import, not for list", "list", "--size", "1"),
        ("--force is for resize and clear and export, not for info", "info", "-f", "work:root"),
        ("--size and --no-resize exclude each other", "import", "--size", "1", "--no-resize", "work:root", "-"),
        ("'1x' is not a size", "import", "--size", "1x", "work:root", "-"),
    ):
        tool.fails(2, part, *words)
    assert tool.wire.requests == []


def test_a_vm_may_be_named_by_its_uuid(tool: Tool) -> None:
    tool.wire.answer("admin.vm.volume.Info+root uuid:12-34", "size=5\n")
    assert tool.ok("info", "uuid:12-34:root", "size") == "5\n"


def test_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_examples_are_plain(qvm_volume.COMMAND, monkeypatch)


def test_import_of_a_file(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 1000)
    monkeypatch.chdir(tmp_path)
    call = "crannog.vm.volume.ImportFile+root work"
    tool.wire.answer(call)
    tool.ok("import", "work:root", "disk.raw")
    tool.ok("import", "--no-resize", "work:root", "disk.raw")
    assert tool.wire.sent("ImportFile") == [(call, os.fsencode(tmp_path / "disk.raw"))] * 2
    (tmp_path / "disk.raw").write_bytes(b"x" * 1001)
    tool.fails(2, "disk.raw has 1001 bytes and work:root 1000", "import", "--no-resize", "work:root", "disk.raw")
    tool.wire.refuse(call, "StoragePoolException", "the disk is full")
    tool.fails(9, "the disk is full", "import", "work:root", "disk.raw")


def test_what_cannot_be_imported(tool: Tool, tmp_path: Path) -> None:
    tool.fails(3, "there is no file", "import", "work:root", str(tmp_path / "none"))
    tool.fails(2, "is not a file", "import", "work:root", str(tmp_path))
    tool.fails(3, "there is no file", "import", "--size", "5", "work:root", str(tmp_path / "none"))
    tool.fails(14, "--offline imports whole files only", "import", "--offline", "work:root", "-")
    assert tool.wire.requests == []


def test_import_of_a_file_with_a_size_goes_as_a_stream(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"hello")
    (tmp_path / "volume").touch()
    tool.wire.answer(BEGIN, f"5 {tmp_path}/volume")
    tool.wire.answer(END)
    assert tool.run("import", "--size", "5", "work:root", str(tmp_path / "disk.raw")) == (0, "", "")
    assert (tmp_path / "volume").read_bytes() == b"hello"
    assert tool.wire.requests == [(BEGIN, b"5"), (END, b"ok")]
    tool.wire.answer(BEGIN, f"6 {tmp_path}/volume")
    sentence = "work:root was not changed: the data end after 5 bytes, but 6 were expected"
    tool.fails(9, sentence, "import", "--size", "6", "work:root", str(tmp_path / "disk.raw"))
    assert tool.wire.requests[2:] == [(BEGIN, b"6"), (END, b"fail\nthe data end after 5 bytes, but 6 were expected")]


def test_progress_is_for_terminals(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 2**18)
    (tmp_path / "volume").touch()
    tool.wire.answer(BEGIN, f"{2**18} {tmp_path}/volume")
    tool.wire.answer(END)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = tool.run("import", "--size", str(2**18), "work:root", str(tmp_path / "disk.raw"))
    assert code == 0
    assert err.endswith("\r100 %  256.0 KiB of 256.0 KiB  \n")
    assert err.count("\r") == 4


def import_stdin(stdin: int, *words: str) -> tuple[int, bytes]:
    process = start("qvm_volume:main", ["import", *words, "work:root", "-"], stdin)
    out, err = process.communicate(b"hello" if stdin == subprocess.PIPE else None, timeout=TIMEOUT)
    assert out == b""
    return process.returncode, err


def test_import_of_standard_input(wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "volume").touch()
    wire.answer(BEGIN, f"5 {tmp_path}/volume")
    wire.answer(END)
    assert import_stdin(subprocess.PIPE, "--size", "5") == (0, b"")
    assert import_stdin(subprocess.PIPE, "--no-resize") == (0, b"")
    (tmp_path / "data").write_bytes(b"....HELLO")
    with open(tmp_path / "data", "rb") as file:
        os.lseek(file.fileno(), 4, os.SEEK_SET)
        assert import_stdin(file.fileno()) == (0, b"")
    assert (tmp_path / "volume").read_bytes() == b"HELLO"
    assert [payload for _, payload in wire.requests] == [b"5", b"ok", b"", b"ok", b"5", b"ok"]


def test_standard_input_of_unknown_length(wire: Wire) -> None:
    code, err = import_stdin(subprocess.PIPE)
    assert (code, wire.requests) == (2, [])
    assert b"nobody knows how long standard input is; give --size" in err


@pytest.mark.parametrize("refused", [BEGIN, END])
def test_a_refused_import(wire: Wire, tmp_path: Path, refused: str) -> None:
    (tmp_path / "volume").touch()
    wire.answer(BEGIN, f"5 {tmp_path}/volume")
    wire.answer(END)
    wire.refuse(refused, "QubesVMNotHaltedError", "work runs")
    assert import_stdin(subprocess.PIPE, "--size", "5") == (5, b"qvm-volume: work runs\n")
    wire.answers[refused] = b""
    code, err = import_stdin(subprocess.PIPE, "--size", "5")
    assert code == 11
    assert err.startswith(b"qvm-volume: crannogd ")
