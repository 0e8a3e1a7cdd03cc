"""qvm-create, qvm-clone and qvm-remove: what they ask for, and what is left when something fails."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.cli import qvm_clone, qvm_create, qvm_remove
from crannog.cli.options import Values
from crannog.errors import InUseError, PropertyRefusedError, StateError, StorageError, VMNotFoundError
from tests.unit.cli_world import Asked, FakeDaemon, Reply, Tool, serving


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def create(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_create.COMMAND, qvm_create._create, capsys)


@pytest.fixture
def remove(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_remove.COMMAND, qvm_remove._remove, capsys)


@pytest.mark.parametrize(
    ("words", "heard"),
    [
        ("work", ["admin.vm.Create.AppVM dom0 name=work label=red"]),
        ("-t debian -l green -v work", ["admin.vm.Create.AppVM+debian dom0 name=work label=green"]),
        ("--disp -t app work", ["admin.vm.Create.DispVM+app dom0 name=work label=red"]),
        ("--standalone work", ["admin.vm.Create.StandaloneVM dom0 name=work label=red"]),
        ("-P big work", ["admin.vm.CreateInPool.AppVM dom0 name=work label=red pool=big"]),
        (
            "-C TemplateVM -p root=fast --pool private=big work",
            ["admin.vm.CreateInPool.TemplateVM dom0 name=work label=red pool:root=fast pool:private=big"],
        ),
        (
            "--standalone -t debian -l blue --prop memory=600 work",
            [
                "crannog.vm.Clone+StandaloneVM debian work",
                "admin.vm.property.Set+label work blue",
                "admin.vm.property.Set+memory work 600",
            ],
        ),
        (
            "--property label=blue --prop template=debian --prop kernelopts=a=b --prop netvm= work",
            [
                "admin.vm.Create.AppVM+debian dom0 name=work label=blue",
                "admin.vm.property.Set+kernelopts work a=b",
                "admin.vm.property.Set+netvm work",
            ],
        ),
    ],
)
def test_what_is_asked_for(words: str, heard: list[str], daemon: FakeDaemon, create: Tool) -> None:
    assert create.ok(*words.split()) == ""
    assert daemon.heard == heard


def test_classes_need_no_daemon(daemon: FakeDaemon, create: Tool) -> None:
    assert "StandaloneVM\n" in create.ok("--help-classes")
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "name the new VM"),
        ("-C AdminVM work", "VMs of class 'AdminVM' cannot be created; the classes are AppVM"),
        ("--standalone --disp work", "--class, --standalone and --disp exclude each other"),
        ("-C AppVM --disp work", "exclude each other"),
        ("-P a --pool root=b work", "give one of the two"),
        ("--pool root work", "--pool takes VOLUME=POOL, not 'root'"),
        ("--pool kernel=a work", "there is no volume 'kernel'"),
        ("--pool root= work", "'' cannot be the name of a pool"),
        ("--prop memory work", "--property takes NAME=VALUE, not 'memory'"),
        ("--prop memory=\u0663 work", "must be printable ASCII"),
        ("--prop a+b=1 work", "cannot be the name of a property"),
        ("-r a -R b work", "exclude each other"),
        ("--standalone -t debian -r a work", "takes no pools and no image"),
        ("--standalone -t debian -P big work", "takes no pools and no image"),
        ("-l b\u00e4d work", "cannot be a label"),
        ("w\u00f6rk", "cannot be the name of a VM"),
    ],
)
def test_nonsense_reaches_nobody(words: str, sentence: str, create: Tool, daemon: FakeDaemon) -> None:
    assert sentence in create.fails(2, *words.split())
    assert daemon.asked == []


def test_a_vm_that_does_not_become_what_it_should_is_taken_back(daemon: FakeDaemon, create: Tool) -> None:
    def refuse(asked: Asked) -> Reply:
        return PropertyRefusedError("use less than 100% of it") if asked.argument == "memory" else ""

    daemon.answers["admin.vm.property.Set"] = refuse
    assert create.fails(2, "--prop", "vcpus=2", "--prop", "memory=1", "work") == "use less than 100% of it"
    assert daemon.heard[-1] == "admin.vm.Remove work"
    daemon.answers["admin.vm.Remove"] = StateError("work is Running")
    code, _, err = create.run("--prop", "memory=1", "work")
    assert code == 2
    assert err.splitlines() == [
        "qvm-create: work was made, but is not as it should be, and stays: work is Running",
        "qvm-create: use less than 100% of it",
    ]


def test_a_name_that_is_taken_removes_nobody(daemon: FakeDaemon, create: Tool) -> None:
    daemon.answers["admin.vm.Create.AppVM"] = InUseError("there is a VM 'work' already")
    assert create.fails(4, "work") == "there is a VM 'work' already"
    daemon.answers["crannog.vm.Clone"] = InUseError("there is a VM 'work' already")
    create.fails(4, "--standalone", "-t", "debian", "work")
    assert not any("Remove" in request for request in daemon.heard)


def test_an_image_is_moved_only_when_it_has_arrived(daemon: FakeDaemon, create: Tool, tmp_path: Path) -> None:
    image = tmp_path / "root.img"
    image.touch()
    daemon.answers["crannog.vm.volume.ImportFile"] = StorageError("the disk is full")
    assert create.fails(9, "-R", str(image), "work") == "the disk is full"
    assert image.exists()
    assert daemon.heard[-1] == "admin.vm.Remove work"
    daemon.answers.clear()
    create.ok("-r", str(image), "work")
    assert image.exists()
    create.ok("-R", str(image), "work")
    assert not image.exists()
    assert daemon.heard[-1] == f"crannog.vm.volume.ImportFile+root work {image}"
    assert "cannot be deleted" in create.fails(9, "-R", str(image), "work")


def test_removal_asks_about_all_before_it_touches_one(daemon: FakeDaemon, remove: Tool) -> None:
    daemon.answers["admin.vm.List"] = lambda asked: VMNotFoundError("no") if asked.vm == "nope" else ""
    assert remove.fails(3, "--force", "work", "nope") == "no"
    assert "add --force" in remove.fails(2, "work")
    assert not any("Remove" in request for request in daemon.heard)
    assert remove.ok("-f", "-q", "work") == ""
    assert daemon.heard[-1] == "admin.vm.Remove work"


def test_clone(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    action: Callable[[Values], None] = qvm_clone._clone
    clone = Tool(qvm_clone.COMMAND, action, capsys)
    clone.ok("-v", "-C", "StandaloneVM", "debian", "copy")
    assert daemon.heard == ["crannog.vm.Clone+StandaloneVM debian copy"]
    assert "cannot be cloned" in clone.fails(2, "dom0", "copy")
