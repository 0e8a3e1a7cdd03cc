"""The planner: the steps of each kind of VM, and every refusal."""

from dataclasses import replace

import pytest

from crannog.core.plan import AwaitAgent, CreatePaused, Plan, PrepareVolume, Resume, StartRpc
from crannog.core.startup import AGENT_CHANNEL, StartRequest, plan_start
from crannog.core.vms import LocalVM
from crannog.errors import StartError, StorageError, VMNotHaltedError
from tests.fakes import Boot, Channel, Disk, HostCapabilities, add_vm, halted_facts, new_registry, template_and_app

NO_HVM = HostCapabilities("tcg", has_hvm=False, emulator="/usr/bin/qemu-system-x86_64")
STATES = ["Running", "Paused", "Transient", "Halting", "Dying", "Crashed", "Suspended"]


def spec_of(plan: Plan) -> CreatePaused:
    return next(step for step in plan if isinstance(step, CreatePaused))


def targets(plan: Plan) -> list[tuple[str, str, str]]:
    return [(disk.target, disk.bus, disk.device) for disk in spec_of(plan).spec.disks]


def test_plan_of_a_pv_appvm() -> None:
    registry = new_registry()
    template, app = template_and_app(registry, "pv")
    app.set("memory", 640)
    plan = plan_start(app, StartRequest(), halted_facts())
    assert [type(step) for step in plan] == [PrepareVolume, PrepareVolume, StartRpc, CreatePaused, Resume]
    root, private = (step.volume for step in plan if isinstance(step, PrepareVolume))
    assert root.source == template.volumes["root"].vid
    assert private.source == ""
    spec = spec_of(plan).spec
    assert (spec.uuid, spec.name, spec.virt_mode, spec.memory, spec.vcpus) == (app.uuid, "work", "pv", 640, 2)
    assert (spec.boot, spec.kernel.endswith("/vmlinuz"), spec.initrd.endswith("/initramfs")) == (
        Boot.KERNEL,
        True,
        True,
    )
    assert spec.kernelopts.split()[-1] == "crannog.name=work"
    assert spec.channels == (Channel(AGENT_CHANNEL, "/run/channel.sock"),)
    assert spec.disks == (
        Disk(f"/pool/{root.vid}", "vda", "virtio", "qcow2"),
        Disk(f"/pool/{private.vid}", "vdb", "virtio", "raw"),
    )
    assert not spec.has_display


def test_plan_of_an_hvm_appvm_over_a_standalone() -> None:
    """B1 and B12: one layer over the root of an HVM that is not itself template-based."""
    registry = new_registry()
    alone = add_vm(registry, "StandaloneVM", "win", mode="hvm")
    app = add_vm(registry, "AppVM", "win-work", alone)
    plan = plan_start(app, StartRequest(), halted_facts())
    spec = spec_of(plan).spec
    assert (spec.boot, spec.kernel, spec.initrd, spec.kernelopts) == (Boot.DISK, "", "", "")
    assert spec.has_display
    assert targets(plan) == [("sda", "sata", "disk"), ("sdb", "sata", "disk")]
    first = plan[0]
    assert isinstance(first, PrepareVolume)
    assert first.volume.source == alone.volumes["root"].vid


def test_an_hvm_that_knows_virtio_gets_virtio_disks() -> None:
    registry = new_registry()
    template, app = template_and_app(registry, "hvm")
    template.features["virtio-disk"] = "1"
    assert targets(plan_start(app, StartRequest(), halted_facts())) == [
        ("vda", "virtio", "disk"),
        ("vdb", "virtio", "disk"),
    ]


@pytest.mark.parametrize(("virtio", "cdrom_target"), [("", "sdc"), ("1", "sda")])
def test_plan_of_a_standalone_with_a_cdrom(virtio: str, cdrom_target: str) -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "win", mode="hvm")
    alone.features["virtio-disk"] = virtio
    plan = plan_start(alone, StartRequest(cdrom="/srv/install.iso"), halted_facts())
    spec = spec_of(plan).spec
    assert spec.boot is Boot.CDROM
    assert spec.disks[-1] == Disk("/srv/install.iso", cdrom_target, "sata", "raw", "cdrom", is_readonly=True)
    assert len({disk.target for disk in spec.disks}) == len(spec.disks)


def test_a_cdrom_is_for_hvms() -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "alone", mode="pvh")
    with pytest.raises(StartError, match="hvm"):
        plan_start(alone, StartRequest(cdrom="/srv/install.iso"), halted_facts())


def test_a_layer_is_as_large_as_its_template() -> None:
    template, app = template_and_app(new_registry())
    template.volumes["root"] = replace(template.volumes["root"], size=99 * 2**30)
    first = plan_start(app, StartRequest(), halted_facts())[0]
    assert isinstance(first, PrepareVolume)
    assert first.volume.size == 99 * 2**30


def test_a_read_only_volume_is_a_read_only_disk() -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "alone")
    alone.volumes["private"] = replace(alone.volumes["private"], rw=False)
    disks = spec_of(plan_start(alone, StartRequest(), halted_facts())).spec.disks
    assert [disk.is_readonly for disk in disks] == [False, True]


@pytest.mark.parametrize(
    ("announced", "wait", "waits"),
    [
        (None, None, False),
        ("", None, False),
        ("1", None, True),
        ("1", False, False),
        (None, True, True),
    ],
)
def test_when_the_agent_is_waited_for(announced: str | None, wait: bool | None, waits: bool) -> None:
    template, app = template_and_app(new_registry())
    app.set("qrexec_timeout", 17)
    if announced is not None:
        template.features["qrexec"] = announced
    last = plan_start(app, StartRequest(wait=wait), halted_facts())[-1]
    assert last == (AwaitAgent(app.uuid, "work", 17, "/log/console.log") if waits else Resume(app.uuid))


def test_every_step_describes_itself() -> None:
    template, app = template_and_app(new_registry())
    lines = [step.describe() for step in plan_start(app, StartRequest(wait=True), halted_facts())]
    assert len(set(lines)) == len(lines) == 6
    assert template.volumes["root"].vid in lines[0]


@pytest.mark.parametrize("state", STATES)
def test_a_vm_that_is_not_halted_is_refused(state: str) -> None:
    _, app = template_and_app(new_registry())
    with pytest.raises(VMNotHaltedError, match=f"work cannot be started: it is {state}"):
        plan_start(app, StartRequest(), halted_facts(power_state=state))


@pytest.mark.parametrize("klass", ["StandaloneVM", "TemplateVM"])
def test_an_hvm_on_a_host_without_hvm_support_is_refused(klass: str) -> None:
    """B14: from the hypervisor's capabilities, not as a generic failure."""
    vm = add_vm(new_registry(), klass, "win", mode="hvm")
    with pytest.raises(StartError, match="win is an HVM, and this host can run none"):
        plan_start(vm, StartRequest(), halted_facts(capabilities=NO_HVM))


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_others_need_no_hvm_support(mode: str) -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone", mode=mode)
    assert plan_start(vm, StartRequest(), halted_facts(capabilities=NO_HVM))


@pytest.mark.parametrize("is_explicit", [True, False])
def test_a_vm_without_a_kernel_is_refused(is_explicit: bool) -> None:
    registry = new_registry()
    vm = add_vm(registry, "StandaloneVM", "alone")
    (vm.set if is_explicit else registry.set)("kernel" if is_explicit else "default_kernel", "")
    with pytest.raises(StartError, match="alone has no kernel"):
        plan_start(vm, StartRequest(), halted_facts())


def test_a_kernel_that_vanished_is_refused() -> None:
    def missing(name: str) -> tuple[str, str]:
        raise StorageError(f"kernel '{name}' is missing")

    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    with pytest.raises(StorageError, match="is missing"):
        plan_start(vm, StartRequest(), halted_facts(kernel_files=missing))


def shared_root() -> tuple[LocalVM, LocalVM, LocalVM]:
    registry = new_registry()
    alone = add_vm(registry, "StandaloneVM", "win", mode="hvm")
    return alone, add_vm(registry, "AppVM", "one", alone), add_vm(registry, "AppVM", "two", alone)


def test_a_shared_root_without_revisions_is_not_used_twice() -> None:
    """B12, in both orders; the refusal names who runs."""
    alone, one, two = shared_root()
    with pytest.raises(StartError, match="one cannot be started while win runs"):
        plan_start(one, StartRequest(), halted_facts(active=frozenset({alone.uuid})))
    with pytest.raises(StartError, match="win cannot be started while one, two runs"):
        plan_start(alone, StartRequest(), halted_facts(active=frozenset({one.uuid, two.uuid})))


def test_two_users_of_a_root_that_nobody_writes_run_together() -> None:
    _, one, two = shared_root()
    assert plan_start(one, StartRequest(), halted_facts(active=frozenset({two.uuid})))


def test_a_root_with_revisions_is_shared_live() -> None:
    """B12."""
    template, app = template_and_app(new_registry())
    assert plan_start(app, StartRequest(), halted_facts(active=frozenset({template.uuid})))
    assert plan_start(template, StartRequest(), halted_facts(active=frozenset({app.uuid})))


def test_a_plan_changes_nothing() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    before = (dict(app.values), dict(app.volumes), dict(template.volumes))
    plan_start(app, StartRequest(), halted_facts())
    assert (app.values, app.volumes, template.volumes) == before
