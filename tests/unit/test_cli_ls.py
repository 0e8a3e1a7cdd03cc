"""qvm-ls and qvm-check: what they ask, which VMs they list, and how."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from crannog.cli import qvm_check, qvm_ls
from crannog.errors import DeniedError, ValueRefusedError, VMNotFoundError
from tests.unit.cli_world import Asked, FakeDaemon, Reply, Tool, serving

DEFAULTS = {
    "klass": "AppVM", "state": "Halted", "label": "red", "template": "debian", "netvm": "", "virt_mode": "pvh",
    "memory": "400", "autostart": "False", "updateable": "False", "provides_network": "False", "tags": "",
    "installed_by_rpm": "False", "debug": "False", "xid": "-1", "ip": "10.137.0.5", "kernelopts": "",
    "kernel": "6.1", "qid": "5", "uuid": "u", "gateway": "10.137.0.9", "visible_gateway": "10.137.0.1",
}  # fmt: skip
VMS: list[dict[str, str]] = [
    {
        "name": "dom0", "klass": "AdminVM", "state": "Running", "label": "black", "template": "-", "netvm": "-",
        "virt_mode": "-", "memory": "-", "autostart": "-", "xid": "0", "updateable": "True",
    },
    {"name": "debian", "klass": "TemplateVM", "template": "-", "updateable": "True", "features.updates-available": "1"},
    {"name": "Mail", "state": "Running", "netvm": "sys-fw", "tags": "mail web", "memory": "1000", "xid": "7"},
    {"name": "bank", "state": "Paused", "netvm": "sys-fw", "tags": "web", "label": "green", "autostart": "True"},
    {
        "name": "other-os", "klass": "StandaloneVM", "template": "-", "virt_mode": "hvm", "debug": "True",
        "features.qga": "1",
    },
    {
        "name": "sys-fw", "state": "Running", "netvm": "sys-net", "provides_network": "True",
        "features.servicevm": "1",
    },
    {"name": "sys-net", "provides_network": "True", "features.servicevm": "1", "features.internal": ""},
    {"name": "vault", "features.internal": "1", "features.Note": "x|y", "kernelopts": "nopat"},
]  # fmt: skip


def table(asked: Asked) -> Reply:
    columns = asked.argument.split("+")
    rows = [DEFAULTS | vm for vm in VMS if asked.vm in ("dom0", vm["name"])]
    if not rows:
        return VMNotFoundError(f"there is no VM '{asked.vm}'")
    for column in columns:
        if column not in DEFAULTS and column != "name" and not column.startswith("features."):
            return ValueRefusedError(f"'{column}' is not a column")
    return "".join("\t".join(row.get(column, "-") for column in columns) + "\n" for row in rows)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(monkeypatch) as daemon:
        daemon.answers["crannog.vm.Table"] = table
        yield daemon


@pytest.fixture
def ls(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_ls.COMMAND, qvm_ls._list, capsys)


@pytest.fixture
def check(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_check.COMMAND, qvm_check._check, capsys)


def names(ls: Tool, *words: str) -> str:
    """Return the names that are listed, in one line."""
    return " ".join(ls.ok("--raw-list", *words).split())


def test_the_default_is_one_call_and_an_aligned_table(daemon: FakeDaemon, ls: Tool) -> None:
    lines = ls.ok().splitlines()
    assert lines[0].split() == ["NAME", "STATE", "CLASS", "LABEL", "TEMPLATE", "NETVM"]
    assert lines[1] == "dom0      Running  AdminVM       black  -         -"
    assert lines[3] == "Mail      Running  AppVM         red    debian    sys-fw"
    assert [asked.vm for asked in daemon.asked] == ["dom0"]


@pytest.mark.parametrize("name", [name for name in qvm_ls.FORMATS if name != "disk"])
def test_formats_are_one_call(name: str, daemon: FakeDaemon, ls: Tool) -> None:
    assert ls.ok("--format", name.upper()).splitlines()[0].split() == qvm_ls.FORMATS[name].upper().split(",")
    assert len(daemon.asked) == 1


def test_columns_have_their_names_in_any_case_and_the_names_of_the_field(daemon: FakeDaemon, ls: Tool) -> None:
    assert ls.ok("-O", "NAME,Class,mode,Virt-Mode", "other-os").splitlines() == [
        "NAME      CLASS         MODE  VIRT-MODE",
        "other-os  StandaloneVM  hvm   hvm",
    ]
    assert ls.ok("--raw-data", "-O", "name,features.Note,tags,netvm", "vault") == "vault|x|y||\n"
    assert ls.ok("--raw-data", "-O", "IPBACK,GATEWAY", "vault") == "10.137.0.9|10.137.0.1\n"
    assert {asked.argument.split("+")[0] for asked in daemon.asked} == {"name"}


def test_named_vms_are_asked_for_once_each_in_the_order_that_is_given(daemon: FakeDaemon, ls: Tool) -> None:
    assert names(ls, "vault", "Mail", "vault") == "vault Mail"
    assert [asked.vm for asked in daemon.asked] == ["vault", "Mail"]
    assert names(ls, "dom0") == "dom0"
    assert names(ls, "bank", "dom0") == "bank dom0"
    assert "there is no VM 'nope'" in ls.fails(3, "dom0", "nope")


def test_an_empty_list_has_no_lines_but_a_heading(ls: Tool) -> None:
    assert ls.ok("--raw-list", "--label", "orange") == ""
    assert ls.ok("--label", "orange") == "NAME  STATE  CLASS  LABEL  TEMPLATE  NETVM\n"
    assert ls.ok("--json", "--label", "orange") == "[]\n"


FILTERS = [
    ("--running", "dom0 Mail sys-fw"),
    ("--running --paused", "dom0 Mail bank sys-fw"),
    ("--halted --class TemplateVM", "debian"),
    ("--class templatevm,StandaloneVM", "debian other-os"),
    ("--class TemplateVM StandaloneVM --all", "debian other-os"),
    ("--label green", "bank"),
    ("--tags mail", "Mail"),
    ("--tags mail web", "Mail bank"),
    ("--tags web --exclude-tags mail", "bank"),
    ("--exclude-tags web mail -- vault Mail", "vault"),
    ("--template debian --netvm sys-fw", "Mail bank"),
    ("--netvm-is none --class AppVM", "sys-net vault"),
    ("--internal y", "vault"),
    ("--internal n --servicevm n --class AppVM", "Mail bank"),
    ("--internal both --servicevm yes", "sys-fw sys-net"),
    ("--pending-update", "debian"),
    ("--features servicevm=1", "sys-fw sys-net"),
    ("--features internal= --feature servicevm=1", "sys-fw"),
    ("--features internal=''", "sys-net"),
    ("--prefs autostart=True", "bank"),
    ("--prefs Virt-Mode=hvm debug=True", "other-os"),
    ("--prefs template=", "dom0 debian other-os"),
    ("--exclude Mail --exclude dom0 --running", "sys-fw"),
    ("--spinner --no-spinner -v -q --label green", "bank"),
]


@pytest.mark.parametrize(("words", "expected"), FILTERS, ids=[row[0] for row in FILTERS])
def test_filters(words: str, expected: str, ls: Tool, daemon: FakeDaemon) -> None:
    assert names(ls, *words.split()) == expected
    assert len({asked.vm for asked in daemon.asked}) == len(daemon.asked)


NONSENSE = [
    ("--format nope", "there is no format 'nope'; the formats are simple,"),
    ("--format simple --fields name", "exclude each other"),
    ("--network --disk", "exclude each other"),
    ("--fields name,,state", "separated by commas"),
    ("--fields nope", "'nope' is not a column"),
    ("--sort nope", "'nope' is not a column"),
    ("--internal maybe", "--internal takes y, n or both, not 'maybe'"),
    ("--features gui", "--features takes NAME=VALUE, not 'gui'"),
    ("--prefs =x", "--prefs takes NAME=VALUE"),
]


@pytest.mark.parametrize(("words", "sentence"), NONSENSE, ids=[row[0] for row in NONSENSE])
def test_nonsense_is_refused(words: str, sentence: str, ls: Tool) -> None:
    assert sentence in ls.fails(2, *words.split())


def test_vms_that_are_not_there_are_told(ls: Tool) -> None:
    assert "there is no VM 'nope'" in ls.fails(3, "Mail", "nope")
    assert "there is no VM 'nope' to exclude" in ls.fails(3, "--exclude", "nope")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--sort memory", "dom0 debian bank other-os sys-fw sys-net vault Mail"),
        ("--sort NAME", "Mail bank debian dom0 other-os sys-fw sys-net vault"),
        ("--sort name --ignore-case", "bank debian dom0 Mail other-os sys-fw sys-net vault"),
        ("--sort name --reverse --class StandaloneVM TemplateVM", "other-os debian"),
        ("--sort state --running --halted", "debian other-os sys-net vault dom0 Mail sys-fw"),
        ("--reverse-sort", "vault sys-net sys-fw other-os bank Mail debian dom0"),
    ],
)
def test_orders(words: str, expected: str, ls: Tool) -> None:
    assert names(ls, *words.split()) == expected


def test_a_tree_stands_each_vm_below_its_netvm(ls: Tool) -> None:
    assert ls.ok("--tree", "-O", "name,state").splitlines() == [
        "NAME      STATE", "dom0      Running", "debian    Halted", "other-os  Halted", "sys-net   Halted",
        "  sys-fw  Running", "    Mail  Running", "    bank  Paused", "vault     Halted",
    ]  # fmt: skip
    assert ls.ok("--tree", "--tags", "web", "-O", "name").splitlines() == ["NAME", "Mail", "bank"]
    assert names(ls, "--tree") == "dom0 debian other-os sys-net sys-fw Mail bank vault"


def test_a_circle_of_netvms_ends(daemon: FakeDaemon, ls: Tool) -> None:
    daemon.answers["crannog.vm.Table"] = "a\tb\nb\ta\nc\tc\n"
    assert ls.ok("--tree", "--raw-list").split() == ["c", "a", "b"]


def test_json_has_types(ls: Tool) -> None:
    fields = "name,class,memory,autostart,netvm,tags,features.internal,kernelopts,xid"
    rows: list[dict[str, Any]] = json.loads(ls.ok("--json", "-O", fields, "--tags", "mail"))
    assert rows == [
        {
            "name": "Mail", "class": "AppVM", "memory": 1000, "autostart": False, "netvm": "sys-fw",
            "tags": ["mail", "web"], "features.internal": None, "kernelopts": "", "xid": 7,
        }
    ]  # fmt: skip
    [dom0] = json.loads(ls.ok("--json", "-O", "memory,autostart,netvm,virt_mode,tags", "dom0"))
    assert dom0 == {"memory": None, "autostart": None, "netvm": None, "virt_mode": None, "tags": []}


def test_flags(ls: Tool) -> None:
    lines = ls.ok("--raw-data", "-O", "name,flags").split()
    assert lines == [
        "dom0|0rU------", "debian|t-U------", "Mail|ar-------", "bank|ap-----A-", "other-os|S-----D-Q",
        "sys-fw|ar-N-----", "sys-net|a--N-----", "vault|a----i---",
    ]  # fmt: skip


def test_disks(daemon: FakeDaemon, ls: Tool) -> None:
    volumes = {"root": "size=104857600\nusage=1048576\n", "private": "size=2097152\nusage=1048576\n"}

    def info(asked: Asked) -> Reply:
        if asked.vm == "vault":
            return VMNotFoundError("there is no VM 'vault'")
        return volumes.get(asked.argument) or DeniedError("Argument not in volumes")

    daemon.answers["admin.vm.volume.Info"] = info
    lines = ls.ok("--disk", "--raw-data").splitlines()
    assert lines[0] == "dom0|Running|-|-|-|-|-|-|-"
    assert lines[2] == "Mail|Running|2|1|2|50%|1|100|1%"
    assert lines[-1] == "vault|Halted|-|-|-|-|-|-|-"
    [row] = json.loads(ls.ok("--json", "-O", "disk,priv-max,priv-used", "Mail"))
    assert row == {"disk": 2, "priv-max": 2, "priv-used": "50%"}
    volumes["private"] = "size=0\nusage=\n"
    assert ls.ok("--raw-data", "-O", "priv-used,priv-curr", "Mail") == "-|0\n"


def test_help_of_formats_and_columns_needs_no_daemon(daemon: FakeDaemon, ls: Tool) -> None:
    assert "network   name,state,netvm,ip,ipback,gateway\n" in ls.ok("--help-formats")
    assert "priv-used" in ls.ok("--help-columns")
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        ("Mail bank", 0, "Mail exists\nbank exists\n"),
        ("--running Mail", 0, "Mail is running\n"),
        ("--running bank", 0, "bank is running\n"),
        ("--paused --networked bank", 0, "bank is paused and has a network\n"),
        ("--template debian", 0, "debian is a template\n"),
        ("--networked sys-net", 0, "sys-net has a network\n"),
        ("--all --exclude Mail --exclude debian -q", 0, ""),
        ("-q --running Mail", 0, ""),
        ("-q --running Mail vault", 1, ""),
        ("-q nope", 1, ""),
        ("-q --networked vault", 1, ""),
        ("-q --networked dom0", 1, ""),
        ("-q --all --running", 1, ""),
    ],
)
def test_check(words: str, code: int, out: str, check: Tool) -> None:
    assert check.run(*words.split()) == (code, out, "")


def test_check_tells_each_vm_that_fails(check: Tool) -> None:
    assert check.run("--running", "--template", "Mail", "nope", "vault") == (
        1,
        "",
        (
            "qvm-check: Mail is no template\n"
            "qvm-check: there is no VM 'nope'; qvm-ls lists the VMs that there are\n"
            "qvm-check: vault is not running and is no template\n"
        ),
    )


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("", 2, "name the VMs to look at, or say --all"),
        ("--all Mail", 2, "but not both"),
        ("--exclude Mail bank", 2, "--exclude leaves VMs out of --all"),
        ("--all --exclude nope", 3, "there is no VM 'nope' to exclude"),
    ],
)
def test_wrong_uses_of_check(words: str, code: int, sentence: str, check: Tool) -> None:
    assert sentence in check.fails(code, *words.split())
