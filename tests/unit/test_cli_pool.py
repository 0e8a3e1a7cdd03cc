"""qvm-pool: exact requests, in the form of today and in that of old, and what is refused."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.cli import qvm_pool
from crannog.errors import CrannogError
from tests.unit.cli_wire import Tool, assert_examples_are_plain, open_wire


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Tool]:
    with open_wire(monkeypatch) as wire:
        wire.answer("admin.pool.List+ dom0", "vm-pool\nlinux-kernel\n")
        wire.answer("admin.pool.ListDrivers+ dom0", "qcow2 dir_path revisions_to_keep\nlinux-kernel\n")
        wire.answer("admin.pool.Info+vm-pool dom0", "driver=qcow2\nname=vm-pool\ndir_path=/a=b\nsize=100\n")
        wire.answer("admin.pool.Info+linux-kernel dom0", "name=linux-kernel\n")
        wire.answer("admin.pool.UsageDetails+vm-pool dom0", "data_size=100\ndata_usage=50\n")
        wire.answer("admin.pool.UsageDetails+linux-kernel dom0")
        yield Tool(wire, qvm_pool.COMMAND, qvm_pool._act, capsys)


def test_list(tool: Tool) -> None:
    expected = "NAME          DRIVER\nvm-pool       qcow2\nlinux-kernel  -\n"
    for words in ((), ("list",), ("ls",), ("l",), ("-l",), ("--list",)):
        assert tool.ok(*words) == expected


def test_info(tool: Tool) -> None:
    expected = [
        "name        vm-pool", "driver      qcow2", "dir_path    /a=b", "size        100", "data_size   100",
        "data_usage  50",
    ]  # fmt: skip
    for words in (("info", "vm-pool"), ("i", "vm-pool"), ("-i", "vm-pool"), ("vm-pool", "--info")):
        assert tool.ok(*words).splitlines() == expected
    assert tool.ok("info", "linux-kernel") == "name  linux-kernel\n"


GIB = 2**30
USAGE = f"driver=qcow2\nsize={100 * GIB}\nused={GIB}\nvolumes=3\nvirtual={22 * GIB}\nreal=4096\n"


def test_usage(tool: Tool) -> None:
    tool.wire.answer("crannog.pool.Usage+vm-pool dom0", USAGE)
    tool.wire.answer("crannog.pool.Usage+linux-kernel dom0", "driver=linux-kernel\nvolumes=1\n")
    expected = [
        "NAME          DRIVER        SIZE       USED     FREE      VOLUMES  VIRTUAL   REAL",
        "vm-pool       qcow2         100.0 GiB  1.0 GiB  99.0 GiB  3        22.0 GiB  4.0 KiB",
        "linux-kernel  linux-kernel  -          -        -         1        -         -",
    ]
    for words in (("usage",), ("u",), ("-u",), ("--usage",)):
        tool.wire.requests.clear()
        assert tool.ok(*words).splitlines() == expected
        assert [call for call, _ in tool.wire.sent("Usage")] == [
            "crannog.pool.Usage+vm-pool dom0", "crannog.pool.Usage+linux-kernel dom0",
        ]  # fmt: skip
    assert tool.ok("usage", "linux-kernel", "vm-pool").splitlines()[1:] != expected[1:]
    tool.wire.requests.clear()
    assert tool.ok("usage", "--raw-data", "linux-kernel", "vm-pool").splitlines() == [
        "linux-kernel|linux-kernel|-|-|-|1|-|-",
        f"vm-pool|qcow2|{100 * GIB}|{GIB}|{99 * GIB}|3|{22 * GIB}|4096",
    ]
    assert len(tool.wire.requests) == 2  # one call a pool, and none for the list of them


def test_usage_of_a_disk_that_is_fuller_than_it_says(tool: Tool) -> None:
    tool.wire.answer("crannog.pool.Usage+vm-pool dom0", "driver=qcow2\nsize=10\nused=11\n")
    assert tool.ok("usage", "--raw-data", "vm-pool") == "vm-pool|qcow2|10|11|0|-|-|-\n"


def test_usage_that_makes_no_sense(tool: Tool) -> None:
    for text in (
        "size=-1\n",
        "real=1.5\n",
        "volumes=\u0661\n",
        f"used={'9' * 5000}\n",
        "free=x\n",
        "real=\n",
        "real\n",
    ):
        tool.wire.answer("crannog.pool.Usage+vm-pool dom0", text)
        for words in (("usage", "vm-pool"), ("usage", "--raw-data", "vm-pool")):
            tool.fails(11, "the answer to crannog.pool.Usage cannot be understood", *words)
    tool.wire.answer("crannog.pool.Usage+vm-pool dom0", "driver=\x1b[2J\nname=\x9b1m\n")
    for words in (("usage", "vm-pool"), ("usage", "--raw-data", "vm-pool")):
        assert tool.ok(*words).replace("\n", "").isprintable()


def test_usage_of_no_pool(tool: Tool) -> None:
    tool.wire.refuse("crannog.pool.Usage+x dom0", "QubesException", "there is no pool 'x'; 'qvm-pool list' lists ...")
    tool.fails(1, "there is no pool 'x'", "usage", "x")


def test_drivers(tool: Tool) -> None:
    for words in (("drivers",), ("d",), ("-d",), ("--help-drivers",)):
        assert tool.ok(*words).splitlines() == [
            "DRIVER        OPTIONS", "qcow2         dir_path, revisions_to_keep", "linux-kernel  -",
        ]  # fmt: skip


def test_add(tool: Tool) -> None:
    tool.wire.answer("admin.pool.Add+qcow2 dom0")
    tool.ok("add", "disk", "qcow2", "-o", "dir_path=/srv/a,b,revisions_to_keep=2", "--option", "x=")
    tool.ok("-a", "disk", "qcow2")
    assert [payload for _, payload in tool.wire.requests] == [
        b"name=disk\ndir_path=/srv/a,b\nrevisions_to_keep=2\nx=\n", b"name=disk\n",
    ]  # fmt: skip
    tool.wire.refuse("admin.pool.Add+zfs dom0", "QubesException", "there is no driver 'zfs'")
    tool.fails(1, "there is no driver 'zfs'", "add", "disk", "zfs")


def test_set(tool: Tool) -> None:
    for name in ("revisions_to_keep", "ephemeral_volatile"):
        tool.wire.answer(f"admin.pool.Set.{name}+vm-pool dom0")
    tool.ok("set", "vm-pool", "-o", "revisions_to_keep=-1,ephemeral_volatile=yes")
    tool.ok("-s", "vm-pool", "-o", "revisions_to_keep=3")
    assert [payload for _, payload in tool.wire.requests] == [b"-1", b"yes", b"3"]
    tool.fails(2, "say with --option what to change in vm-pool: revisions_to_keep or", "set", "vm-pool")
    tool.fails(2, "'size' of a pool cannot be changed", "set", "vm-pool", "-o", "revisions_to_keep=1,size=2")
    assert len(tool.wire.requests) == 3


def test_remove(tool: Tool) -> None:
    for name in ("a", "b"):
        tool.wire.answer(f"admin.pool.Remove+{name} dom0")
    tool.ok("remove", "a", "b")
    tool.ok("-r", "a")
    assert [call for call, _ in tool.wire.requests] == [f"admin.pool.Remove+{name} dom0" for name in "aba"]
    tool.wire.refuse("admin.pool.Remove+vm-pool dom0", "QubesPoolInUseError", "pool vm-pool has volumes")
    tool.fails(4, "pool vm-pool has volumes", "rm", "vm-pool")


def test_there_is_no_such_pool(tool: Tool) -> None:
    for method in ("Info", "Remove", "Set.revisions_to_keep"):
        tool.wire.refuse(f"admin.pool.{method}+x dom0", "PermissionDenied", "Argument not in 'pools'")
    for words in (("info", "x"), ("remove", "x"), ("set", "x", "-o", "revisions_to_keep=1")):
        tool.fails(3, "there is no pool 'x'; 'qvm-pool list' lists the pools", *words)
    tool.wire.refuse("admin.pool.Info+x dom0", "PermissionDenied", "no")
    tool.fails(13, "no", "info", "x")


@pytest.mark.parametrize("text", [b"name", b"=x\n", b"a=1\na=2\n", b"\xff=1\n", b"a=1\n\n"])
def test_answers_that_make_no_sense(tool: Tool, text: bytes) -> None:
    tool.wire.answer("admin.pool.UsageDetails+vm-pool dom0", text)
    tool.fails(11, "cannot be understood", "info", "vm-pool")
    tool.wire.answer("admin.pool.Info+vm-pool dom0", text)
    tool.fails(11, "cannot be understood", "list")


def test_control_characters_are_escaped(tool: Tool) -> None:
    tool.wire.answer("admin.pool.List+ dom0", "vm-pool\n")
    tool.wire.answer("admin.pool.Info+vm-pool dom0", "driver=\x1b[2J\n\x07=1\n")
    tool.wire.answer("admin.pool.ListDrivers+ dom0", "\x1b[2J \x9b1m\n")
    for words in (("list",), ("info", "vm-pool"), ("drivers",)):
        assert tool.ok(*words).replace("\n", "").isprintable()


def test_wrong_command_lines(tool: Tool) -> None:
    for part, *words in (
        ("'lst' is none of list, info", "lst"),
        ("'vm-pool' is none of", "vm-pool"),
        ("'list' takes no argument", "list", "vm-pool"),
        ("'info' takes the name of a pool", "-i"),
        ("'info' takes the name of a pool", "info", "a", "b"),
        ("'a' takes the name of the pool, and its driver", "a", "disk"),
        ("'remove' takes the names of pools", "remove"),
        ("--info and --remove exclude each other", "-i", "-r", "x"),
        ("--raw-data is for usage, not for list", "list", "--raw-data"),
        ("'a b' cannot be the name of a pool", "usage", "a b"),
        ("--usage and --remove exclude each other", "-u", "-r", "x"),
        ("--option is for add and set, not for list", "list", "-o", "a=1"),
        ("--option takes KEY=VALUE, not 'a'", "add", "disk", "qcow2", "-o", "a,b=1"),
        ("option 'a' is given twice", "add", "disk", "qcow2", "-o", "a=1,a=2"),
        ("option 'a' is given twice", "add", "disk", "qcow2", "-o", "a=1", "-o", "a=2"),
        ("cannot be the name of a pool's option", "add", "disk", "qcow2", "-o", "=1"),
        ("must be printable ASCII", "add", "disk", "qcow2", "-o", "a=\n"),
        ("'a b' cannot be the name of a pool", "info", "a b"),
        ("'../x' cannot be the name of a pool", "add", "disk", "../x"),
        ("'' cannot be the name of a pool", "info", ""),
    ):
        tool.fails(2, part, *words)
    assert tool.wire.requests == []


@given(st.lists(st.text(alphabet="ab=,\n \u00e9-", max_size=12), max_size=3))
def test_options_are_read_or_refused(texts: list[str]) -> None:
    try:
        pairs = qvm_pool.parse_options(texts)
    except CrannogError:
        return
    assert all(key and "\n" not in key + value for key, value in pairs.items())


def test_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_examples_are_plain(qvm_pool.COMMAND, monkeypatch)
