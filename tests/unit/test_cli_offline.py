"""The tools in offline mode, as a user runs them: processes of their own, on a home that no daemon ever served."""

import contextlib
import importlib.metadata
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog import cli
from crannog.adapters.store.lock import DAEMON, StoreLock
from crannog.cli import kernel, prefs, qubes_prefs, qvm_clone, qvm_features, qvm_notes, qvm_prefs, qvm_tags, store
from crannog.cli.options import Command

BIN = os.path.dirname(sys.executable)
TIMEOUT = 60
TOOLS = {
    "qubes-prefs": qubes_prefs.COMMAND, "qvm-clone": qvm_clone.COMMAND, "qvm-features": qvm_features.FEATURES,
    "qvm-notes": qvm_notes.COMMAND, "qvm-prefs": qvm_prefs.COMMAND, "qvm-service": qvm_features.SERVICE,
    "qvm-tags": qvm_tags.COMMAND, "crannog kernel": kernel.COMMAND, "crannog store": store.COMMAND,
}  # fmt: skip
VOLUMES = ("root", "private", "volatile")
R3 = """<QubesVmCollection default_template="1">
<QubesAdminVm qid="0" name="dom0" label="black"/>
<QubesTemplateVm qid="1" name="furrow" label="black" memory="400" maxmem="2000" vcpus="2"/>
<QubesAppVm qid="2" name="field" label="green" template_qid="1" memory="512" vcpus="2"/>
</QubesVmCollection>
"""


Words = tuple[str, ...]
Case = tuple[int, str, Words]
"""Exit code and part of the sentence of a command line that must fail."""


WARM = """
import importlib, io, json, os, sys
import crannog.offline.client, crannog.offline.repair
for line in sys.stdin:
    target, sys.argv, env, files = json.loads(line)
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    os.environ.clear()
    os.environ.update(env)
    for number, name in enumerate(files):
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY), number)
    sys.stdin = open(0)
    try:
        module, _, function = target.partition(":")
        code = getattr(importlib.import_module(module), function)()
    except SystemExit as ending:
        code = ending.code
    sys.stdout.flush()
    os._exit(code or 0)
"""
TARGETS = {script.name: script.value for script in importlib.metadata.entry_points(group="console_scripts")}


class Warm:
    """Runs tools in processes of their own that need not load everything anew, which takes a tool 0.2 s offline.

    They are copies of one that has loaded the offline mode and done nothing else (fork(2)).
    """

    def __init__(self, folder: Path) -> None:
        self._files = [folder / name for name in ("in", "out", "err")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: list[str], env: dict[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        """Run a tool; return its code, output and errors."""
        for file, content in zip(self._files, (stdin, b"", b""), strict=True):
            file.write_bytes(content)
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([TARGETS[words[0]], words, env, list(map(str, self._files))]), file=self._process.stdin)
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, self._files[1].read_bytes(), self._files[2].read_bytes()

    def close(self) -> None:
        self._process.communicate(timeout=TIMEOUT)
        assert self._process.returncode == 0


class Tools:
    """Runs tools on one home. Tools that can do without a daemon are told to."""

    warm: Warm | None = None

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = home / "qubes.xml"
        self.env = {**os.environ, "CRANNOG_HOME": str(home)}

    def run(self, words: Words, stdin: bytes = b"", *, is_cold: bool = False) -> tuple[int, str, str]:
        """Run a tool, if `is_cold` as it is installed; return its code, output and errors."""
        tool, *rest = words
        if words[:2] != ("crannog", "store"):
            rest.insert(1 if tool == "crannog" else 0, "--offline")
        if self.warm and not is_cold:
            code, out, err = self.warm.run([tool, *rest], self.env, stdin)
        else:
            command = [os.path.join(BIN, tool), *rest]
            done = subprocess.run(command, env=self.env, input=stdin, capture_output=True, timeout=TIMEOUT, check=False)
            code, out, err = done.returncode, done.stdout, done.stderr
        return code, out.decode(), err.decode()

    def all_ok(self, *commands: Words) -> list[str]:
        """Run tools that must succeed; return their outputs."""
        return [self.ok(*words) for words in commands]

    def ok(self, *words: str, stdin: bytes = b"") -> str:
        """Run a tool that must succeed; return its output."""
        code, out, err = self.run(words, stdin)
        assert (code, err) == (0, ""), (words, code, out, err)
        return out

    def all_fail(self, *cases: Case, stdin: bytes = b"") -> list[str]:
        """Run tools that must fail with nothing but one sentence; return the sentences."""
        sentences = []
        for code, part, words in cases:
            ended, out, err = self.run(words, stdin)
            program = " ".join(words[:2]) if words[0] == "crannog" else words[0]
            assert (ended, out) == (code, ""), (words, ended, out, err)
            assert err.startswith(f"{program}: "), (words, err)
            assert err.count("\n") == 1, (words, err)
            assert part in err, (words, err)
            sentences.append(err.removeprefix(f"{program}: ").rstrip())
        return sentences

    def fails(self, code: int, *words: str, stdin: bytes = b"") -> str:
        return self.all_fail((code, "", words), stdin=stdin)[0]


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Tools.warm = Warm(tmp_path_factory.mktemp("warm"))
    yield
    Tools.warm.close()
    Tools.warm = None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Return a home with the TemplateVM `tpl` and the AppVM `work`."""
    tools = Tools(tmp_path_factory.mktemp("base") / "home")
    tools.ok("qvm-create", "--class", "TemplateVM", "--label", "black", "tpl")
    tools.ok("qvm-create", "--template", "tpl", "--label", "green", "work")
    return tools


@pytest.fixture
def tools(base: Tools, tmp_path: Path) -> Iterator[Tools]:
    """Return a home of the test's own that is like `base`. Its volumes are as empty, and cost as little."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copy2(base.store, home)
    for parent, _, names in os.walk(base.home / "pools"):
        folder = home / Path(parent).relative_to(base.home)
        folder.mkdir()
        for name in names:
            with open(folder / name, "wb") as file:
                file.truncate(os.stat(os.path.join(parent, name)).st_size)
    yield Tools(home)
    assert not (home / "run").exists()  # nobody started a daemon


def test_the_tools_work_as_they_are_installed(tools: Tools) -> None:
    for words, expected in (
        (("qvm-create", "--template", "tpl", "new"), ""), (("qvm-clone", "new", "clone"), ""),
        (("qvm-prefs", "new", "memory", "500"), ""), (("qubes-prefs", "default_template", "tpl"), ""),
        (("qvm-features", "new", "gui", "1"), ""), (("qvm-service", "new", "cups", "on"), ""),
        (("qvm-tags", "new", "add", "mail"), ""), (("qvm-notes", "new", "--set", "text"), ""),
        (("qvm-remove", "--force", "clone"), ""), (("crannog", "kernel", "list"), ""),
        (("crannog", "store", "check"), f"{tools.store}: 3 VMs, format R4\n"),
        (("qvm-ls", "--raw-data", "-O", "name,memory", "new"), "new|500\n"),
    ):  # fmt: skip
        assert tools.run(words, is_cold=True) == (0, expected, "")
    assert tools.ok("qvm-features", "new") == "gui           1\nservice.cups  1\n"
    assert (tools.ok("qvm-tags", "new", "list", "mail"), tools.ok("qvm-notes", "new")) == ("mail\n", "text\n")
    code, _, err = tools.run(("qvm-prefs", "nobody"), is_cold=True)
    assert (code, err) == (3, "qvm-prefs: there is no VM 'nobody'; qvm-ls lists the VMs that there are\n")


def test_how_full_pools_are(tools: Tools) -> None:
    sizes = [int(tools.ok("qvm-volume", "info", f"{vm}:{name}", "size")) for vm in ("tpl", "work") for name in VOLUMES]
    row = tools.ok("qvm-pool", "usage", "--raw-data", "vm-pool").split("|")
    name, driver, size, used, free, volumes, virtual, real = row
    assert (name, driver, volumes, virtual) == ("vm-pool", "qcow2", str(len(sizes)), str(sum(sizes)))
    assert int(size) == int(used) + int(free) > 0
    assert int(real) < 2**20  # nothing was ever written to them
    assert tools.ok("qvm-pool", "usage").splitlines()[0].split() == [
        "NAME", "DRIVER", "SIZE", "USED", "FREE", "VOLUMES", "VIRTUAL", "REAL",
    ]  # fmt: skip
    assert tools.fails(3, "qvm-pool", "usage", "x") == "there is no pool 'x'; 'qvm-pool list' lists the pools"


def test_properties_are_shown_set_and_reset(tools: Tools) -> None:
    tools.ok("qvm-prefs", "work", "memory", "600")
    value, listed, own, explained = tools.all_ok(
        ("qvm-prefs", "--get", "work", "memory"),
        ("qvm-prefs", "work"),
        ("qvm-prefs", "--hide-default", "work"),
        ("qvm-prefs", "--help-properties", "work"),
    )
    assert value == "600\n"
    rows = [line.split() for line in listed.splitlines()]
    assert [row for row in rows if row[0] in ("memory", "vcpus", "netvm")] == [
        ["memory", "-", "600"], ["vcpus", "D", "2"], ["netvm", "D"],
    ]  # fmt: skip
    assert [line.split()[0] for line in own.splitlines()] == ["label", "memory", "name", "qid", "uuid", "template"]
    assert re.search("^memory +Memory at start", explained, re.MULTILINE)
    tools.ok("qvm-prefs", "--default", "work", "memory")
    assert tools.all_ok(("qvm-prefs", "work", "memory"), ("qvm-prefs", "--hide-default", "work", "memory")) == [
        "400\n", "",
    ]  # fmt: skip


def test_values_that_are_empty_or_start_with_a_dash_pass(tools: Tools) -> None:
    tools.all_ok(
        ("qvm-prefs", "--set", "work", "kernelopts", "-v \\ -D"),
        ("qvm-prefs", "tpl", "kernelopts", "--", "--offline"),
        ("qvm-prefs", "-s", "tpl", "default_user", ""),
    )
    shown, listed, others, user = tools.all_ok(
        ("qvm-prefs", "work", "kernelopts"),
        ("qvm-prefs", "work"),
        ("qvm-prefs", "tpl", "kernelopts"),
        ("qvm-prefs", "tpl", "default_user"),
    )
    assert (shown, others, user) == ("-v \\ -D\n", "--offline\n", "\n")
    assert re.search(r"^kernelopts +-  -v \\ -D$", listed, re.MULTILINE)


def test_none_is_no_vm_but_a_text_like_any_other(tools: Tools) -> None:
    tools.all_ok(
        ("qvm-prefs", "work", "guivm", "none"),
        ("qvm-prefs", "work", "audiovm", ""),
        ("qvm-prefs", "work", "kernelopts", "none"),
    )
    assert tools.ok("qvm-ls", "--raw-data", "-O", "guivm,audiovm,kernelopts", "work") == "||none\n"
    assert "needs a template" in tools.fails(2, "qvm-prefs", "work", "template", "none")


def test_wrong_uses_of_qvm_prefs_change_nothing(base: Tools) -> None:
    before = base.store.read_bytes()
    cases = [
        (3, "there is no VM 'nobody'; qvm-ls lists", ("nobody",)),
        (3, "work has no property 'nonsense'", ("work", "nonsense")),
        (2, "property 'memory' of work was not set: 'much' is not a whole number", ("work", "memory", "much")),
        (3, "there is no label 'pink'; use one of red, ", ("work", "label", "pink")),
        (2, "read-only", ("work", "uuid", "x")),
        (2, "'a/b' cannot be the name of a property", ("work", "a/b")),
        (2, "property 'dns' was not set: its value must be printable ASCII", ("work", "dns", "\u00e9")),
        (2, "--default takes the name of a property, and no value", ("--default", "work")),
        (2, "--get takes the name of a property, and no value", ("--get", "work", "memory", "1")),
        (2, "--set takes the name of a property and its new value", ("--set", "work", "memory")),
        (2, "--default and --set exclude each other", ("--set", "--default", "work", "memory")),
    ]
    base.all_fail(*[(code, part, ("qvm-prefs", *words)) for code, part, words in cases])
    assert base.store.read_bytes() == before


def test_global_properties(tools: Tools) -> None:
    tools.ok("qubes-prefs", "default-template", "tpl")
    assert tools.ok("qubes-prefs", "--hide-default").split() == ["default_template", "-", "tpl"]
    tools.ok("qubes-prefs", "default_template", "none")
    assert tools.ok("qubes-prefs", "default_template") == "\n"
    tools.ok("qubes-prefs", "--unset", "default_template")
    assert tools.ok("qubes-prefs", "--hide-default") == ""
    tools.all_fail(
        (2, "read-only", ("qubes-prefs", "maxmem", "1")),
        (3, "no property 'nonsense'", ("qubes-prefs", "nonsense")),
    )


def test_features(tools: Tools) -> None:
    assert tools.ok("qvm-features", "work") == ""
    tools.ok("qvm-features", "work", "gui", "")
    tools.all_ok(
        ("qvm-features", "work", "longer.name", "--", "- 0"),
        ("qvm-features", "tpl", "qrexec", "false"),
        ("qvm-features", "dom0", "everywhere", "1"),
    )
    assert tools.all_ok(
        ("qvm-features", "work"),
        ("qvm-features", "work", "gui"),
        ("qvm-features", "--with-template", "work", "qrexec"),
        ("qvm-features", "--with-admin", "--with-template", "work", "everywhere"),
        ("qvm-features", "--with-admin", "work", "everywhere"),
    ) == ["gui\nlonger.name  - 0\n", "\n", "false\n", "1\n", "1\n"]
    tools.ok("qvm-features", "--unset", "work", "gui")
    tools.all_fail(
        (3, "work has no feature 'qrexec'", ("qvm-features", "work", "qrexec")),
        (3, "work has no feature 'qrexec'", ("qvm-features", "--with-netvm", "work", "qrexec")),
        (3, "work has no feature 'gui'", ("qvm-features", "-D", "work", "gui")),
    )


def test_wrong_uses_of_qvm_features(base: Tools) -> None:
    cases = [
        (3, "there is no VM 'nobody'", ("nobody",)),
        (2, "'a b' cannot be the name of a feature: use letters, digits and _ . -", ("work", "a b", "1")),
        (2, "feature 'a' was not set: its value must be printable ASCII", ("work", "a", "\u00e9")),
        (2, "--unset takes a VM and the name of a feature, and no value", ("work", "--unset")),
        (2, "--with-template is for showing one feature", ("work", "--with-template")),
        (2, "--with-netvm excludes", ("work", "a", "--with-admin", "--with-netvm")),
        (13, "is kept by the system", ("work", "preload-dispvm", "1")),
    ]
    base.all_fail(*[(code, part, ("qvm-features", *words)) for code, part, words in cases])


def test_services(tools: Tools) -> None:
    for words in (("work", "cups", "on"), ("-d", "work", "crond"), ("-e", "work", "ntp"), ("work", "x", "off")):
        tools.ok("qvm-service", *words)
    tools.ok("qvm-features", "work", "gui", "1")
    services = "cups   on\ncrond  off\nntp    on\nx      off\n"
    assert tools.all_ok(
        ("qvm-service", "work"),
        ("qvm-service", "-l", "work"),
        ("qvm-service", "work", "crond"),
        ("qvm-features", "work", "service.ntp"),
        ("qvm-features", "work", "service.x"),
    ) == [services, services, "off\n", "1\n", "\n"]
    tools.all_ok(("qvm-service", "--default", "work", "crond"), ("qvm-service", "--default", "work", "crond"))
    assert "service 'crond' of work is neither on nor off" in tools.fails(3, "qvm-service", "work", "crond")


def test_wrong_uses_of_qvm_service(base: Tools) -> None:
    cases = [
        ("'perhaps' is neither on nor off", ("work", "cups", "perhaps")),
        ("say only one of", ("work", "cups", "on", "-d")),
        ("name the service after the VM", ("work", "-e")),
        ("--list takes no service", ("work", "cups", "-l")),
        ("'' cannot be the name of a service", ("work", "", "on")),
    ]
    base.all_fail(*[(2, part, ("qvm-service", *words)) for part, words in cases])


def test_tags(tools: Tools) -> None:
    tools.ok("qvm-tags", "work", "add", "mail", "bank", "list")
    listed = tools.all_ok(("qvm-tags", "work"), ("qvm-tags", "work", "ls"))
    assert listed[0].split() == listed[1].split() == sorted(listed[0].split())
    assert {"mail", "bank", "list", "created-by-dom0"} <= set(listed[0].split())
    assert tools.ok("qvm-tags", "work", "list", "mail") == "mail\n"
    tools.ok("qvm-tags", "work", "del", "mail", "never-there")
    assert tools.run(("qvm-tags", "work", "list", "mail")) == (1, "", "")


def test_wrong_uses_of_qvm_tags(base: Tools) -> None:
    cases = [
        (2, "name the tags after 'add'", ("work", "add")),
        (2, "'list' takes one tag at most", ("work", "list", "a", "b")),
        (2, "'mail' is none of list, add and del", ("work", "mail")),
        (2, "'b.d' cannot be the name of a tag: use letters, digits and _ -", ("work", "add", "good", "b.d")),
        (3, "there is no VM 'nobody'", ("nobody", "list", "mail")),
        (13, "created-by-x", ("work", "set", "created-by-x")),
    ]
    base.all_fail(*[(code, part, ("qvm-tags", *words)) for code, part, words in cases])


def test_a_clone_has_settings_notes_and_volumes_of_its_own(tools: Tools) -> None:
    tools.all_ok(
        ("qvm-prefs", "work", "memory", "600"), ("qvm-features", "work", "gui", "1"),
        ("qvm-tags", "work", "add", "mail"), ("qvm-notes", "--set", "text", "work"),
    )  # fmt: skip
    tools.all_ok(("qvm-clone", "work", "again"), ("qvm-clone", "--class", "StandaloneVM", "work", "alone"))
    tools.ok("qvm-features", "work", "gui", "")
    table, *marks = tools.all_ok(
        ("qvm-ls", "--raw-data", "--fields", "name,class,label,template,memory"),
        ("qvm-features", "again", "gui"), ("qvm-tags", "again", "list", "mail"), ("qvm-notes", "alone"),
    )  # fmt: skip
    assert marks == ["1\n", "mail\n", "text\n"]
    assert table.split()[1:] == [
        "again|AppVM|green|tpl|600", "alone|StandaloneVM|green|-|600", "tpl|TemplateVM|black|-|400",
        "work|AppVM|green|tpl|600",
    ]  # fmt: skip
    assert len(list(tools.home.glob("pools/vm-pool/*/private.img"))) == 4


def test_wrong_uses_of_qvm_clone(base: Tools) -> None:
    cases = [
        (3, "there is no VM 'nobody'", ("nobody", "new")),
        (4, "a VM called 'tpl' exists already", ("work", "tpl")),
        (2, "'a b' cannot be the name of a VM", ("work", "a b")),
        (2, "dom0 is this host itself and cannot be cloned", ("dom0", "new")),
        (2, "VMs of class 'Odd' cannot be created; the classes are AppVM, ", ("-C", "Odd", "work", "new")),
    ]
    base.all_fail(*[(code, part, ("qvm-clone", *words)) for code, part, words in cases])


def test_vms_of_all_classes_can_be_created(tools: Tools) -> None:
    tools.ok("qvm-create", "-C", "AppVM", "-t", "tpl", "--prop", "template_for_dispvms=True", "parent")
    tools.all_ok(
        ("qvm-create", "-C", "DispVM", "-t", "parent", "disp"),
        ("qvm-create", "-C", "RemoteVM", "--prop", "remote_name=far", "remote"),
        ("qvm-create", "-C", "StandaloneVM", "alone"),
    )
    assert tools.ok("qvm-ls", "--raw-data", "-O", "name,klass,template").split() == [
        "dom0|AdminVM|-", "alone|StandaloneVM|-", "disp|DispVM|parent", "parent|AppVM|tpl", "remote|RemoteVM|-",
        "tpl|TemplateVM|-", "work|AppVM|tpl",
    ]  # fmt: skip


def test_vms_that_cannot_be_created_leave_nothing(tools: Tools) -> None:
    tools.all_fail(
        (2, "the classes are AppVM, DispVM, RemoteVM, ", ("qvm-create", "-C", "AdminVM", "x")),
        (3, "there is no label 'pink'; use one of red, ", ("qvm-create", "-l", "pink", "-t", "tpl", "x")),
        (3, "no property 'odd'", ("qvm-create", "-t", "tpl", "--prop", "memory=99", "--prop", "odd=1", "y")),
    )
    assert tools.ok("qvm-ls", "--raw-list").split() == ["dom0", "tpl", "work"]
    assert len(list(tools.home.glob("pools/vm-pool/*"))) == 2


@contextlib.contextmanager
def left_running(tools: Tools, vm: str) -> Iterator[None]:
    """Have a process that looks like the QEMU of a VM whose daemon has ended."""
    uuid = tools.ok("qvm-prefs", vm, "uuid").strip()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "-uuid", uuid]) as process:
        try:
            folder = tools.home / "vmm/run/qemu"
            folder.mkdir(parents=True)
            (folder / f"{vm}.pid").write_text(str(process.pid))
            yield
        finally:
            process.kill()


def test_removal(tools: Tools) -> None:
    tools.all_fail(
        (4, "tpl is in use by work (template)", ("qvm-remove", "-f", "tpl")),
        (2, "add --force", ("qvm-remove", "work")),
        (2, "dom0 is this host itself", ("qvm-remove", "-f", "dom0")),
        (3, "there is no VM 'nobody'", ("qvm-remove", "-f", "work", "nobody")),
    )
    with left_running(tools, "work"):
        assert tools.ok("qvm-ls", "--running", "--raw-list").split() == ["dom0", "work"]
        assert "while it is Running" in tools.fails(5, "qvm-remove", "-f", "work")
    tools.ok("qvm-remove", "-f", "work", "tpl")
    assert tools.ok("qvm-ls", "--raw-list") == "dom0\n"
    assert list(tools.home.glob("pools/vm-pool/*")) == []


def test_notes(tools: Tools) -> None:
    assert tools.ok("qvm-notes", "work") == ""
    tools.ok("qvm-notes", "work", "--set", "gr\u00fcn")
    tools.ok("qvm-notes", "work", "-a", "two", "-a", "three")
    assert tools.ok("qvm-notes", "--print", "work") == "gr\u00fcn\ntwo\nthree\n"
    tools.ok("qvm-notes", "work", "--import", "-", stdin=b"a\r\nb\xe2\x80\xae\n")
    assert tools.ok("qvm-notes", "work") == "a\nb_\n"
    tools.ok("qvm-notes", "work", "--delete", "--force")
    assert tools.ok("qvm-notes", "work") == ""


def test_wrong_uses_of_qvm_notes(base: Tools, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\xff")
    cases = [
        (
            2,
            "stay as they are: byte 2 of the new ones is not",
            ("work", "-i", str(tmp_path / "text")),
        ),
        (2, "the new ones are longer than 65000 bytes", ("work", "-i", "-")),
        (3, "there is no file", ("work", "-i", str(tmp_path / "nothing"))),
        (2, "Is a directory", ("work", "-i", str(tmp_path))),
        (2, "--set and --delete exclude each other", ("work", "--delete", "--set", "")),
        (2, "--set can be given once only", ("work", "--set", "a", "--set", "b")),
        (2, "dom0 is this host itself and has no notes", ("dom0",)),
        (3, "there is no VM 'nobody'", ("nobody", "--set", "a")),
    ]
    base.all_fail(*[(code, part, ("qvm-notes", *words)) for code, part, words in cases], stdin=b"a" * 65001)
    assert not (base.home / "notes").exists()


def test_notes_are_edited_in_a_private_file(tools: Tools, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    tools.env |= {"VISUAL": f"{sys.executable} {editor}", "TMPDIR": str(tmp_path)}
    editor.write_text(
        "import os, subprocess, sys\npath = sys.argv[1]\n"
        "assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700\n"
        # The store is not locked meanwhile.
        f"subprocess.run([{BIN + '/qvm-ls'!r}, '--offline'], check=True, stdout=subprocess.DEVNULL)\n"
        "open(path, 'a').write('more')\n"
    )
    tools.ok("qvm-notes", "--edit", "work")
    assert tools.ok("qvm-notes", "work") == "more\n"
    editor.write_text("raise SystemExit(3)")
    assert "ended with 3; the notes stay" in tools.fails(2, "qvm-notes", "-e", "work")
    assert list(tmp_path.glob("qvm-notes-*")) == []
    editor.write_text("import sys\nopen(sys.argv[1], 'wb').write(b'\\xff')")
    sentence = tools.fails(2, "qvm-notes", "-e", "work")
    assert Path(sentence.rpartition("your text is in ")[2]).read_bytes() == b"\xff"


def columns(text: str) -> list[tuple[str, ...]]:
    """Return number, size and content of each version in a list of them."""
    line = re.compile(r" +(now|\d+)  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d +(\d+) KiB  (.*)")
    return [match.groups() for match in map(line.fullmatch, text.splitlines()) if match]


def test_former_versions_are_listed_and_brought_back(tools: Tools) -> None:
    first = tools.store.read_bytes()
    tools.ok("qvm-create", "-C", "RemoteVM", "far")
    second = tools.store.read_bytes()
    tools.ok("qvm-prefs", "far", "label", "blue")
    (tools.home / "history/00000006.xml").mkdir()
    (tools.home / "history/00000007.xml").write_text("<qubes>\n</qube>")
    history = columns(tools.ok("crannog", "store", "history"))
    assert [(number, content.partition(":")[0]) for number, _, content in history] == [
        ("now", "3 VMs"), ("7", "broken"), ("6", "broken"), ("2", "3 VMs"), ("1", "2 VMs"),
    ]  # fmt: skip
    assert history[1][2].startswith("broken: line 2: ")
    tools.all_fail(
        (9, "version 7 of the store cannot be used: line 2: ", ("crannog", "store", "restore", "7")),
        (3, "there is no version 99 of the store", ("crannog", "store", "restore", "99")),
        (2, "'x' is not the number of a version", ("crannog", "store", "restore", "x")),
    )
    done = tools.ok("crannog", "store", "restore")
    assert re.fullmatch(
        r"version 2 of [-0-9]+ [:0-9]+ is the store again, with 3 VMs; the file that was there is version 8 now\n", done
    )
    assert tools.store.read_bytes() == second
    assert "with 2 VMs" in tools.ok("crannog", "store", "restore", "1")
    assert tools.store.read_bytes() == first
    assert (tools.home / "history/00000009.xml").read_bytes() == second
    assert tools.ok("qvm-ls", "--raw-list").split() == ["dom0", "tpl", "work"]


def break_in_line_5(file: Path) -> bytes:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = b"</nonsense>\n"
    file.write_bytes(b"".join(lines))
    return file.read_bytes()


def test_a_broken_file_is_left_alone_and_can_be_replaced(tools: Tools) -> None:
    tools.ok("qvm-tags", "work", "add", "mail")
    good = (tools.home / "history/00000001.xml").read_bytes()
    broken = break_in_line_5(tools.store)
    part = f"the store {tools.store} cannot be used: line 5: "
    sentences = tools.all_fail(
        (9, part, ("qvm-ls",)),
        (9, part, ("qvm-prefs", "work", "memory", "500")),
        (9, part, ("crannog", "store", "check")),
    )
    assert all("'crannog store restore'" in sentence for sentence in sentences)
    assert columns(tools.ok("crannog", "store", "history"))[0][2].startswith("broken: line 5: ")
    assert tools.store.read_bytes() == broken
    assert "version 2 now" in tools.ok("crannog", "store", "restore")
    assert tools.store.read_bytes() == good
    assert (tools.home / "history/00000002.xml").read_bytes() == broken


def test_a_file_that_is_gone_can_be_brought_back(tools: Tools) -> None:
    good = tools.store.read_bytes()
    tools.ok("qvm-tags", "work", "add", "mail")
    tools.store.unlink()
    assert "'crannog store restore'" in tools.fails(3, "crannog", "store", "check")
    assert "no file was there" in tools.ok("crannog", "store", "restore", "1")
    assert tools.store.read_bytes() == good


def test_check(base: Tools, tmp_path: Path) -> None:
    old, bad = tmp_path / "r3.xml", tmp_path / "bad.xml"
    old.write_text(R3)
    bad.write_text(R3.replace('name="field"', ""))
    own, other = base.all_ok(("crannog", "store", "check"), ("crannog", "store", "check", str(old)))
    assert own == f"{base.store}: 2 VMs, format R4\n"
    first, *remarks = other.splitlines()
    assert first == f"{old}: 2 VMs, format R3"
    assert any("have to be brought over separately" in remark for remark in remarks)
    base.all_fail(
        (9, f"{bad} cannot be used as a store: line 4: ", ("crannog", "store", "check", str(bad))),
        (3, "there is no file", ("crannog", "store", "check", str(tmp_path / "nothing"))),
        (2, "is none of history, restore, check, import", ("crannog", "store", "repair")),
        (2, "are for import", ("crannog", "store", "check", "--replace")),
        (2, "history takes no operand", ("crannog", "store", "history", "1")),
        (2, "name the file to import", ("crannog", "store", "import")),
    )


def test_a_file_of_qubes_is_taken_over(tools: Tools, tmp_path: Path) -> None:
    file = tmp_path / "r3.xml"
    file.write_text(R3)
    before = tools.store.read_bytes()
    assert "has 2 VMs already; add --replace" in tools.fails(4, "crannog", "store", "import", str(file))
    for words in (("--dry-run",), ()):
        assert tools.store.read_bytes() == before
        code, out, err = tools.run(("crannog", "store", "import", "--replace", *words, str(file)))
        assert (code, out) == (0, f"2 VMs {'would be ' if words else ''}taken over from {file}\n")
        assert all(line.startswith("crannog store: ") for line in err.splitlines())
        assert "have to be brought over separately" in err
    assert tools.ok("qvm-ls", "--raw-data", "-O", "name,klass,memory").split() == [
        "dom0|AdminVM|-", "field|AppVM|512", "furrow|TemplateVM|400",
    ]  # fmt: skip
    assert (tools.home / "history/00000001.xml").read_bytes() == before


def test_a_home_that_does_not_exist_is_made_when_something_is_to_be_kept(base: Tools, tmp_path: Path) -> None:
    tools, other = Tools(tmp_path / "new/home"), Tools(tmp_path / "newer")
    part = f"store {tools.store}"
    tools.all_fail(
        (3, part, ("crannog", "store", "history")),
        (3, part, ("crannog", "store", "check")),
        (3, part, ("crannog", "store", "restore")),
        (3, "there is no version 1", ("crannog", "store", "restore", "1")),
        (9, "/dev/null cannot be used as a store", ("crannog", "store", "import", "/dev/null")),
    )
    assert not tools.home.parent.exists()
    assert tools.ok("crannog", "store", "import", str(base.store)) == f"2 VMs taken over from {base.store}\n"
    assert tools.home.stat().st_mode & 0o777 == 0o700
    assert other.ok("qvm-ls", "--raw-list") == "dom0\n"
    assert other.home.is_dir()


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tools = Tools(tmp_path / "file/home")
    tools.all_fail((9, str(tools.home), ("qvm-ls",)), (9, str(tools.home), ("crannog", "store", "check")))


def test_what_a_daemon_has_is_not_changed_beside_it(tools: Tools, tmp_path: Path) -> None:
    tools.ok("qvm-tags", "work", "add", "mail")
    (tmp_path / "r3.xml").write_text(R3)
    lock = StoreLock(str(tools.store) + ".lock")
    lock.acquire(DAEMON)
    try:
        tools.all_fail(
            (11, "'crannog daemon stop'", ("qvm-ls",)),
            (11, "'crannog daemon stop'", ("crannog", "store", "restore")),
            (11, "'crannog daemon stop'", ("crannog", "store", "import", "--replace", str(tmp_path / "r3.xml"))),
        )
        history, _ = tools.all_ok(("crannog", "store", "history"), ("crannog", "store", "check"))
        assert len(columns(history)) == 2
    finally:
        lock.release()


def test_kernels(tools: Tools) -> None:
    for name in ("6.1.0-a", "6.1.0-b"):
        (tools.home / "pools/linux-kernel" / name).mkdir(parents=True)
    assert tools.ok("crannog", "kernel", "list") == "6.1.0-a\n6.1.0-b\n"
    tools.ok("qvm-prefs", "work", "kernel", "6.1.0-a")
    tools.ok("crannog", "kernel", "remove", "6.1.0-b")
    tools.all_fail(
        (4, "is in use by work", ("crannog", "kernel", "remove", "6.1.0-a")),
        (3, "there is no kernel 'none'", ("crannog", "kernel", "remove", "none")),
        (2, "name the kernel", ("crannog", "kernel", "remove")),
        (2, "'../x' cannot be the name of a kernel", ("crannog", "kernel", "remove", "../x")),
        (2, "neither list nor add nor remove", ("crannog", "kernel", "drop")),
    )
    assert tools.ok("crannog", "kernel", "list") == "6.1.0-a\n"


WRONG_NUMBERS = [
    ("qvm-prefs", 4), ("qubes-prefs", 3), ("qvm-features", 4), ("qvm-service", 4), ("qvm-clone", 3), ("qvm-clone", 1),
    ("qvm-notes", 2), ("qvm-notes", 0), ("qvm-tags", 0), ("crannog kernel", 3), ("crannog store", 0),
]  # fmt: skip


@pytest.mark.parametrize(("program", "number"), WRONG_NUMBERS)
def test_a_wrong_number_of_operands_ends_with_2(program: str, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        TOOLS[program].parse(["word"] * number)
    assert caught.value.code == 2
    assert f"usage: {program}" in capsys.readouterr().err


@pytest.mark.parametrize("program", sorted(TOOLS))
def test_help_has_examples_that_the_tool_takes(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = TOOLS[program]
    examples = [re.split("&&|>", line)[0] for line in command.examples.splitlines()]
    assert all(f"\n  {line.strip()}" in command.build_parser().format_help() for line in examples)
    assert os.access(os.path.join(BIN, program.split(maxsplit=1)[0]), os.X_OK)
    # No example is so odd as to need argparse, which is slow.
    monkeypatch.setattr(Command, "build_parser", lambda _self: 1 // 0)
    for line in examples:
        assert line.startswith(f"  {program}")
        words = shlex.split(line)[len(program.split()) :]
        monkeypatch.setattr(sys, "argv", [program, *words])
        command.parse(prefs.arguments_of(command) if program.endswith("-prefs") else words)


PROBE = """
import contextlib, importlib, json, os, sys
def leave(code): raise SystemExit(code)
os._exit = leave
modules, function, sys.argv = json.loads(sys.argv[1])
with contextlib.suppress(SystemExit):
    for module in modules:
        loaded = importlib.import_module(module)
    if function:
        getattr(loaded, function)()
print(json.dumps([name for name in sys.modules if "." not in name]), file=sys.stderr)
"""


def loaded_by(modules: list[str], function: str, words: list[str], env: dict[str, str]) -> set[str]:
    """Return the modules of a process that imports `modules` and calls the last one's function."""
    command = [sys.executable, "-c", PROBE, json.dumps([modules, function, words])]
    done = subprocess.run(command, env=env, capture_output=True, timeout=TIMEOUT, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_tools_load_only_what_they_need(base: Tools) -> None:
    modules = [f"crannog.cli.{module.name}" for module in pkgutil.iter_modules(cli.__path__)]
    assert "crannog.cli.store" in modules
    heavy = {"lxml", "asyncio", "libvirt", "argparse", "typing", "logging"}
    assert not loaded_by(modules, "", [], base.env) & heavy
    env = {**base.env, "PYTHONWARNINGS": "ignore"}
    offline = loaded_by(["crannog.cli.qvm_ls"], "main", ["qvm-ls", "--offline"], env)
    assert {"lxml", "asyncio"} <= offline
    checked = loaded_by(["crannog.cli.umbrella"], "main", ["crannog", "store", "check"], env)
    assert "lxml" in checked
    assert not (offline | checked) & {"libvirt", "libvirtmod", "libvirtaio"}
