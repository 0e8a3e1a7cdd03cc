"""crannog storage: exact requests, what it prints of the answers, and the whole way on a home without a daemon."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.cli import storage
from tests.unit.cli_wire import TIMEOUT, Tool, Wire, assert_examples_are_plain, open_wire

BIN = os.path.dirname(sys.executable)
ORPHAN = {"kind": "orphan", "path": "/p/old-1", "reason": "belongs to no VM", "vid": "", "size": 1536}
BROKEN = {"kind": "broken", "path": "/p/a/root.2.qcow2", "reason": "is\x1b[2J damaged", "vid": "a/root", "size": 0}


def answer(*found: dict[str, object], remarks: tuple[str, ...] = ()) -> str:
    return json.dumps({"found": found, "remarks": remarks})


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with open_wire(monkeypatch) as wire:
        wire.answer("admin.pool.List+ dom0", "vm-pool\nother\nlinux-kernel\nthin\n")
        wire.answer("crannog.pool.Check+vm-pool dom0", answer())
        wire.answer("crannog.pool.Check+other dom0", answer())
        for method in ("Check", "FindWaste", "Collect"):
            wire.refuse(f"crannog.pool.{method}+linux-kernel dom0", "StoragePoolException", "holds no volumes")
            wire.refuse(f"crannog.pool.{method}+thin dom0", "QubesNotImplementedError", "pool thin cannot be checked")
        wire.answer("admin.pool.Info+linux-kernel dom0", "driver=linux-kernel\nname=linux-kernel\n")
        yield wire


@pytest.fixture
def tool(wire: Wire, capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(wire, storage.COMMAND, storage._act, capsys)


def test_a_check_that_finds_nothing(tool: Tool) -> None:
    assert tool.run("check") == (0, "", "crannog storage: pool thin cannot be checked\n")
    assert tool.ok("check", "vm-pool", "other") == ""
    assert tool.ok("check", "--json", "other") == "[]\n"


def test_a_check_that_finds_something(tool: Tool) -> None:
    tool.wire.answer("crannog.pool.Check+other dom0", answer(BROKEN, ORPHAN))
    code, out, err = tool.run("check", "vm-pool", "other")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        r"broken other: /p/a/root.2.qcow2 is\x1b[2J damaged",
        "orphan other: /p/old-1 belongs to no VM (1.5 KiB)",
    ]
    code, out, err = tool.run("check", "--json", "other")
    assert (code, err) == (1, "")
    assert json.loads(out) == [{"pool": "other", **BROKEN}, {"pool": "other", **ORPHAN}]


def test_a_pool_that_cannot_be_looked_at_is_a_failure_when_it_is_named(tool: Tool) -> None:
    tool.fails(15, "pool thin cannot be checked", "check", "thin")
    tool.fails(9, "holds no volumes", "check", "linux-kernel")
    tool.wire.refuse("crannog.pool.Check+vm-pool dom0", "StoragePoolException", "pool vm-pool cannot be checked: EIO")
    tool.wire.answer("admin.pool.Info+vm-pool dom0", "driver=qcow2\n")
    tool.fails(9, "EIO", "check")
    tool.wire.answers["crannog.pool.Check+none dom0"] = b"2\0QubesException\0NotFoundError\0there is no pool 'none'\0"
    tool.fails(3, "there is no pool 'none'", "check", "none")
    tool.fails(2, "cannot be the name of a pool", "check", "a b")


def test_waste_is_told_and_deleted_when_that_is_wanted(tool: Tool) -> None:
    tool.wire.answer("crannog.pool.FindWaste+other dom0", answer(ORPHAN, ORPHAN))
    tool.wire.answer("crannog.pool.FindWaste+vm-pool dom0", answer())
    tool.wire.answer("crannog.pool.Collect+other dom0", answer(ORPHAN, remarks=("/p/x cannot be deleted",)))
    line = "orphan other: /p/old-1 belongs to no VM (1.5 KiB)\n"
    assert tool.ok("gc", "other") == f"{line}{line}2 can be deleted, 3.0 KiB; add --yes to delete them\n"
    assert tool.ok("gc", "vm-pool") == "0 can be deleted, 0 B\n"
    assert tool.wire.sent("Collect") == []
    code, out, err = tool.run("gc", "--yes", "other")
    assert (code, out) == (0, f"{line}1 deleted, 1.5 KiB\n")
    assert err == "crannog storage: /p/x cannot be deleted\n"
    assert json.loads(tool.ok("gc", "--json", "other"))[0]["path"] == "/p/old-1"


def test_accept(tool: Tool) -> None:
    tool.wire.answer("crannog.vm.volume.Accept+root work")
    assert tool.ok("accept", "work", "root") == ""
    tool.wire.refuse("crannog.vm.volume.Accept+none work", "PermissionDenied", "Argument not in 'work volumes'")
    tool.fails(3, "work has no volume 'none'; 'qvm-volume list work'", "accept", "work", "none")
    tool.fails(2, "cannot be the name of a volume", "accept", "work", "a b")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("repair",), "'repair' is none of check, gc, accept"),
        (("accept", "work"), "'accept' takes VM and VOLUME"),
        (("check", "--yes"), "--yes is for gc, not for check"),
        (("accept", "--json", "work", "root"), "--json is for check and gc, not for accept"),
    ],
)
def test_wrong_uses(tool: Tool, words: tuple[str, ...], part: str) -> None:
    tool.fails(2, part, *words)
    assert tool.wire.requests == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"found": [{}], "remarks": []}', '{"found": 1, "remarks": []}'])
def test_an_answer_that_makes_no_sense(tool: Tool, text: str) -> None:
    tool.wire.answer("crannog.pool.Check+other dom0", text)
    tool.fails(11, "the answer to crannog.pool.Check cannot be understood", "check", "other")


def test_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_examples_are_plain(storage.COMMAND, monkeypatch)


# -- the whole way, offline


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home with a TemplateVM and an AppVM."""
    home = tmp_path / "home"
    home.mkdir(0o700)
    monkeypatch.setenv("CRANNOG_HOME", str(home))
    monkeypatch.setenv("CRANNOG_CACHE", str(tmp_path / "cache"))
    program("qvm-create", "-C", "TemplateVM", "-l", "black", "tpl")
    program("qvm-create", "-C", "AppVM", "-l", "red", "-t", "tpl", "work")
    return home


def program(*words: str) -> tuple[int, str]:
    """Run a tool offline, in a process of its own, which must not complain; return its code and output."""
    command = [os.path.join(BIN, words[0]), *words[1:], "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.stderr == ""
    return done.returncode, done.stdout


def offline(*words: str) -> tuple[int, str]:
    return program("crannog", "storage", *words)


def test_a_home_without_a_daemon(home: Path) -> None:
    assert offline("check") == (0, "")
    pool = home / "pools/vm-pool"
    (template,) = pool.glob("tpl-*")
    (work,) = pool.glob("work-*")
    (pool / "gone-12345678").mkdir(0o700)
    (pool / "gone-12345678/root.img").write_bytes(b"x" * 5000)
    (pool / "gone-12345678/root.img").chmod(0o600)
    (template / "root.new").touch(0o600)
    os.symlink("/etc/passwd", template / "root.7.img")
    (work / "private.img").unlink()
    code, out = offline("check", "vm-pool")
    assert code == 1
    assert [line.replace(str(pool), "POOL").split(" (")[0] for line in out.splitlines()] == [
        "half-made vm-pool: POOL/" + template.name + "/root.new was never finished",
        "missing vm-pool: POOL/" + work.name
        + "/private.img does not exist; restore it from a backup with 'qvm-volume import'",
        "orphan vm-pool: POOL/gone-12345678 belongs to no VM of the store",
        "unsafe vm-pool: POOL/" + template.name + "/root.7.img is a link to '/etc/passwd'; put the file itself there",
    ]  # fmt: skip
    (template / "root.7.img").unlink()
    before = sorted(str(path) for path in pool.rglob("*"))
    code, out = offline("gc")
    assert (code, sorted(str(path) for path in pool.rglob("*"))) == (0, before)
    assert out.splitlines()[-1].startswith("2 can be deleted, ")
    code, out = offline("gc", "--yes")
    assert out.splitlines()[-1].startswith("2 deleted, ")
    assert not (pool / "gone-12345678").exists()
    assert not (template / "root.new").exists()
    assert offline("gc") == (0, "0 can be deleted, 0 B\n")


def test_rights(home: Path) -> None:
    (template,) = (home / "pools/vm-pool").glob("tpl-*")
    template.chmod(0o755)
    (template / "private.img").chmod(0o666)
    os.mkfifo(template / "root.9.img", 0o600)
    if os.geteuid() == 0:
        (private,) = (home / "pools/vm-pool").glob("work-*/private.img")
        os.chown(private, 12345, -1)
    code, out = offline("check")
    assert code == 1
    assert {line.split()[0] for line in out.splitlines()} == {"unsafe"}
    assert "has mode 755, so that others can use it" in out
    assert "has mode 666, so that others can use it" in out
    assert "root.9.img is neither a file nor a folder; delete it" in out
    assert ("belongs to user 12345, not to 0" in out) is (os.geteuid() == 0)


def test_a_changed_template(home: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 5000)
    assert program("qvm-volume", "import", "tpl:root", str(image)) == (0, "")
    (content,) = (home / "pools/vm-pool").glob("tpl-*/root.[0-9].img")
    assert offline("check") == (0, "")
    os.utime(content, ns=(1, 1))
    assert offline("check") == (1, f"changed vm-pool: {content} was written to after it was finished\n")
    assert offline("accept", "tpl", "root") == (0, "")
    assert offline("check") == (0, "")
