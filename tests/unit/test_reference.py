"""What is made from declarations is what is in the repository, and the table holds every method of the API."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crannog.api.reference import POLICY_FILE, render_documentation, render_policy
from crannog.api.table import METHODS, Access, Scope
from crannog.cli.commands import COMMANDS, find_command
from crannog.cli.manual import page_name, render_page
from crannog.errors import EXIT_CODES, CrannogError

ROOT = Path(__file__).parents[2]
DEVICE_METHODS = (
    "Available", "Assigned", "Attached", "Assign", "Attach", "Unassign", "Detach", "Set.assignment",
)  # fmt: skip
PROPERTY_METHODS = ("List", "Get", "GetAll", "GetDefault", "Help", "Set", "Reset")
# Typed from the specification (Admin API, section 6).
SPECIFIED = {
    "admin.vmclass.List", "admin.vm.List", "admin.Events", "admin.vm.Stats", "admin.deviceclass.List",
    *(f"admin.property.{name}" for name in PROPERTY_METHODS),
    *(f"admin.vm.property.{name}" for name in PROPERTY_METHODS),
    *(f"admin.vm.feature.{name}" for name in (
        "List", "Get", "CheckWithTemplate", "CheckWithNetvm", "CheckWithAdminVM", "CheckWithTemplateAndAdminVM",
        "Set", "Remove")),
    *(f"admin.vm.tag.{name}" for name in ("List", "Get", "Set", "Remove")),
    *(f"admin.label.{name}" for name in ("List", "Get", "Index", "Create", "Remove")),
    *(f"admin.pool.{name}" for name in (
        "List", "ListDrivers", "Info", "UsageDetails", "Add", "Remove", "Set.revisions_to_keep",
        "Set.ephemeral_volatile", "volume.List")),
    *(f"admin.vm.volume.{name}" for name in (
        "List", "Info", "ListSnapshots", "Revert", "CloneFrom", "CloneTo", "Resize", "Clear", "Set.revisions_to_keep",
        "Set.rw", "Set.ephemeral", "Import", "ImportWithSize")),
    *(f"admin.vm.{word}.{klass}" for word in ("Create", "CreateInPool") for klass in (
        "AppVM", "DispVM", "RemoteVM", "StandaloneVM", "TemplateVM")),
    *(f"admin.vm.{name}" for name in (
        "CreateDisposable", "Remove", "Start", "Shutdown", "Pause", "Unpause", "Suspend", "Resume", "Kill",
        "CurrentState", "Console", "notes.Get", "notes.Set", "firewall.Get", "firewall.Set", "firewall.Reload")),
    *(f"admin.vm.device.{klass}.{name}" for klass in ("pci", "block") for name in DEVICE_METHODS),
    *(f"admin.vm.device.denied.{name}" for name in ("List", "Add", "Remove")),
    *(f"admin.backup.{name}" for name in ("Info", "Execute", "Cancel")),
    *(f"internal.{name}" for name in (
        "GetSystemInfo", "vm.volume.ImportBegin", "vm.volume.ImportEnd", "SuspendPre", "SuspendPost")),
    "qubes.FeaturesRequest", "qubes.NotifyTools", "qubes.NotifyUpdates",
    *(f"policy.{sort}{name}" for sort in ("", "include.") for name in ("List", "Get", "Replace", "Remove")),
    "policy.GetFiles", "policy.EvalSimple", "policy.EvalGUI",
}  # fmt: skip


def test_every_specified_method_is_declared() -> None:
    assert set(METHODS) >= SPECIFIED


def test_everything_beyond_is_called_ours() -> None:
    odd = {name for name in METHODS if name not in SPECIFIED and not name.startswith("crannog.")}
    assert all(name.startswith("admin.vm.device.") for name in odd), odd


def test_the_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/reference"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_method_is_documented_once() -> None:
    text = render_documentation()
    assert all(text.count(f"| `{name}` |") == 1 for name in METHODS)


def test_policy_puts_each_method_into_one_include() -> None:
    files = render_policy()
    lines = [line.split() for line in files[POLICY_FILE].splitlines() if not line.startswith("#")]
    assert sorted(line[1] for line in lines) == sorted(name for name in METHODS if name.startswith("admin."))
    for _, name, argument, include in lines:
        method = METHODS[name]
        assert argument == "*"
        assert include in files
        assert include.endswith("-ro") is (method.access == Access.READ)
        assert ("-global-" in include) is (method.scope is Scope.GLOBAL)


def test_policy_allows_nothing_by_itself() -> None:
    for path, text in render_policy().items():
        words = {word for line in text.splitlines() if not line.startswith("#") for word in line.split()}
        assert "allow" not in words, path


def test_every_exit_code_is_explained() -> None:
    kinds = [CrannogError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert kind.exit_code in EXIT_CODES


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_manual_pages_can_be_read(name: str) -> None:
    command = find_command(name)
    assert command
    assert command.program == name
    page = render_page(command)
    groff = shutil.which("groff")
    assert groff, "groff is in scripts/apt-packages-test"
    done = subprocess.run(
        [groff, "-man", "-ww", "-Tascii", "-P-cbou", "-rLL=500n"],
        input=page.encode(),
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert done.stderr == b""
    text = done.stdout.decode()
    for option in command.options:
        assert all(option_name in text for option_name in option.names)
    assert (ROOT / "share/man/man1" / page_name(name)).read_text() == page
