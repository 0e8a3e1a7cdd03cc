"""The planner: the steps of each kind of VM, and every refusal."""

from dataclasses import replace

import pytest

from crannog.core.clock import Basis, Clock
from crannog.core.domain import DomainSpec
from crannog.core.drives import Drive, DriveFile, DriveKind, FileKind, absent_file
from crannog.core.kernels import KernelFiles
from crannog.core.plan import (
    AwaitAgent,
    CreatePaused,
    OpenDisplays,
    Plan,
    PrepareVolume,
    ReserveMemory,
    Resume,
    StartRpc,
)
from crannog.core.specification import AGENT_CHANNEL
from crannog.core.startup import StartRequest, plan_start
from crannog.core.vms import LocalVM
from crannog.core.volumes import Volume
from crannog.errors import HypervisorError, StartError, StorageError, VMNotHaltedError
from tests.fakes import (
    KERNEL,
    Boot,
    Channel,
    Disk,
    HostCapabilities,
    add_vm,
    halted_facts,
    new_registry,
    template_and_app,
)

XEN = HostCapabilities("xen", has_hvm=True, emulator="/qemu", kind="xen", loader="/hvmloader")
CDROM, HD = Drive(DriveKind.CDROM, "/srv/i"), Drive(DriveKind.HD, "/srv/i")
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
    assert [type(step) for step in plan] == [
        PrepareVolume, PrepareVolume, PrepareVolume, ReserveMemory, StartRpc, OpenDisplays, CreatePaused, Resume,
    ]  # fmt: skip
    root, private, volatile = (step.volume for step in plan if isinstance(step, PrepareVolume))
    assert (root.source, root.rw) == (template.volumes["root"].vid, False)
    assert (private.source, volatile.source) == ("", "")
    spec = spec_of(plan).spec
    assert (spec.uuid, spec.name, spec.virt_mode, spec.memory, spec.vcpus) == (app.uuid, "work", "pv", 640, 2)
    assert (spec.boot, spec.kernel.endswith("/vmlinuz"), spec.initrd.endswith("/initramfs")) == (
        Boot.KERNEL,
        True,
        True,
    )
    assert spec.kernelopts.split() == [
        *("root=/dev/vda", "rw", "console=ttyS0", "no_timer_check", "cryptomgr.notests", "quiet"),
        *("crannog.volatile=/dev/vdc", "crannog.modules=/dev/vdd", "crannog.name=work"),
    ]
    assert spec.channels == (Channel(AGENT_CHANNEL, "/run/channel.sock"),)
    assert spec.disks == (
        Disk(f"/pool/{root.vid}", "vda", "virtio", "qcow2", is_readonly=True),
        Disk(f"/pool/{private.vid}", "vdb", "virtio", "raw"),
        Disk(f"/pool/{volatile.vid}", "vdc", "virtio", "qcow2"),
        Disk(f"/kernels/{KERNEL}/modules.img", "vdd", "virtio", "raw", is_readonly=True),
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


def image(path: str) -> DriveFile:
    return DriveFile(f"/real{path}", FileKind.FILE)


def spec_with(vm: LocalVM, request: StartRequest | None = None, **facts: object) -> DomainSpec:
    return spec_of(plan_start(vm, request or StartRequest(), halted_facts(**facts))).spec


@pytest.mark.parametrize(("virtio", "cdrom_target"), [("", "sdc"), ("1", "sda")])
def test_an_hvm_boots_from_a_cdrom(virtio: str, cdrom_target: str) -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "win", mode="hvm")
    alone.features["virtio-disk"] = virtio
    spec = spec_with(alone, StartRequest(drive=CDROM), drive_file=image)
    assert spec.boot is Boot.DRIVE
    last = Disk("/real/srv/i", cdrom_target, "sata", "raw", "cdrom", is_readonly=True, boots_first=True)
    assert spec.disks[-1] == last
    assert len({disk.target for disk in spec.disks}) == len(spec.disks)


@pytest.mark.parametrize(("virtio", "target", "bus"), [("", "sdc", "sata"), ("1", "vdc", "virtio")])
def test_an_hvm_boots_from_a_disk(virtio: str, target: str, bus: str) -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "win", mode="hvm")
    alone.features["virtio-disk"] = virtio
    spec = spec_with(alone, StartRequest(drive=HD), drive_file=image)
    assert spec.boot is Boot.DRIVE
    assert spec.disks[-1] == Disk("/real/srv/i", target, bus, "raw", boots_first=True)
    assert [disk.boots_first for disk in spec.disks] == [False, False, True]


@pytest.mark.parametrize(("drive", "is_readonly"), [(CDROM, True), (HD, False)])
@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_a_vm_with_a_kernel_from_the_host_gets_the_image_as_one_more_disk(
    mode: str, drive: Drive, is_readonly: bool
) -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "alone", mode=mode)
    spec = spec_with(alone, StartRequest(drive=drive), drive_file=image)
    assert spec.boot is Boot.KERNEL
    assert spec.disks[-1] == Disk("/real/srv/i", "vde", "virtio", "raw", is_readonly=is_readonly)


def test_a_device_of_the_host_is_a_block_device() -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "alone")
    request = StartRequest(drive=replace(HD, may_be_device=True))
    spec = spec_with(alone, request, drive_file=lambda path: DriveFile(path, FileKind.DEVICE))
    assert spec.disks[-1] == Disk("/srv/i", "vde", "virtio", "raw", is_block=True)


@pytest.mark.parametrize("file", [absent_file("/srv/i"), DriveFile("/srv/i", FileKind.DEVICE)])
def test_an_image_that_will_not_do_is_refused(file: DriveFile) -> None:
    alone = add_vm(new_registry(), "StandaloneVM", "alone")
    with pytest.raises(StartError, match="alone cannot be started with the image /srv/i"):
        plan_start(alone, StartRequest(drive=HD), halted_facts(drive_file=lambda _path: file))
    with pytest.raises(StartError, match="there is no such file"):
        plan_start(alone, StartRequest(drive=HD), halted_facts())


@pytest.mark.parametrize(
    ("mode", "drive", "targets"),
    [
        ("pvh", None, {"/pool": ["xvda", "xvdb", "xvdc"], "/kernels": ["xvdd"]}),
        ("pvh", HD, {"/pool": ["xvda", "xvdb", "xvdc"], "/kernels": ["xvdd"], "/real": ["xvde"]}),
        ("hvm", CDROM, {"/pool": ["xvda", "xvdb"], "/real": ["xvdc"]}),
        ("hvm", HD, {"/pool": ["xvdb", "xvdc"], "/real": ["xvda"]}),
    ],
)
def test_disks_on_xen(mode: str, drive: Drive | None, targets: dict[str, list[str]]) -> None:
    """Its firmware boots the first disk or the CD-ROM: a disk to boot from takes the first place."""
    alone = add_vm(new_registry(), "StandaloneVM", "alone", mode=mode)
    alone.features["virtio-disk"] = "1"
    disks = spec_with(alone, StartRequest(drive=drive), drive_file=image, capabilities=XEN).disks
    assert {disk.bus for disk in disks} == {"xen"}
    for prefix, expected in targets.items():
        assert [disk.target for disk in disks if disk.path.startswith(prefix)] == expected


def test_a_kernel_on_xen_is_told_of_xens_disks_and_console() -> None:
    words = spec_with(add_vm(new_registry(), "StandaloneVM", "alone"), capabilities=XEN).kernelopts.split()
    disks = ["crannog.volatile=/dev/xvdc", "crannog.modules=/dev/xvdd"]
    assert words == ["root=/dev/xvda", "rw", "console=hvc0", "quiet", *disks, "crannog.name=alone"]


def test_an_unknown_hypervisor_is_refused() -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    with pytest.raises(HypervisorError, match="the hypervisor 'bhyve' is not known; use one of qemu, xen"):
        spec_with(vm, capabilities=replace(XEN, kind="bhyve"))


def test_what_a_kernel_is_told() -> None:
    template, app = template_and_app(new_registry())
    template.features["boot-mode.kernelopts.rescue"] = "single"
    app.set("kernelopts", "panic=1")
    assert spec_with(app).kernelopts.split()[-3:] == ["crannog.modules=/dev/vdd", "panic=1", "crannog.name=work"]
    app.set("bootmode", "rescue")
    assert spec_with(app).kernelopts.split()[-3:] == ["panic=1", "single", "crannog.name=work"]


def test_in_debug_mode_the_kernel_says_what_it_does() -> None:
    _, app = template_and_app(new_registry())
    app.set("debug", True)
    assert "quiet" not in spec_with(app).kernelopts.split()


@pytest.mark.parametrize(
    ("mode", "balanced", "chosen", "host", "maxmem"),
    [
        ("pvh", None, None, XEN, 4000),
        ("pvh", "", None, XEN, 400),
        ("pvh", None, 300, XEN, 400),
        ("hvm", None, None, XEN, 400),
        ("hvm", "1", None, XEN, 4000),
        ("pvh", None, None, NO_HVM, 400),
        ("pvh", None, 800, NO_HVM, 800),
        ("pvh", "", 800, NO_HVM, 400),
        ("pvh", None, 0, NO_HVM, 400),
    ],
)
def test_memory_that_can_grow(
    mode: str, balanced: str | None, chosen: int | None, host: HostCapabilities, maxmem: int
) -> None:
    """Who chose nothing gets a machine that starts quickly; on Xen room to grow costs nothing."""
    vm = add_vm(new_registry(), "StandaloneVM", "alone", mode=mode)
    if balanced is not None:
        vm.features["service.meminfo-writer"] = balanced
    if chosen is not None:
        vm.set("maxmem", chosen)
    spec = spec_with(vm, capabilities=replace(host, has_hvm=True))
    assert (spec.memory, spec.maxmem, spec.can_grow) == (400, maxmem, maxmem > 400)


def test_room_to_grow_that_was_chosen_for_the_template_counts() -> None:
    template, app = template_and_app(new_registry())
    template.set("maxmem", 900)
    assert spec_with(app).maxmem == 900
    step = spec_of(plan_start(app, StartRequest(), halted_facts()))
    assert "pvh, 400 to 900 MiB" in step.describe()


@pytest.mark.parametrize(("text", "clock"), [("localtime", Clock(Basis.LOCAL)), ("7200", Clock(offset=7200))])
def test_the_clock(text: str, clock: Clock) -> None:
    template, app = template_and_app(new_registry())
    template.features["timezone"] = text
    assert (spec_with(app).clock, spec_with(app).warnings) == (clock, ())
    app.features["timezone"] = ""
    assert spec_with(app).clock == Clock()


def test_a_clock_that_is_not_understood_is_told_of_and_shows_utc() -> None:
    _, app = template_and_app(new_registry())
    app.features["timezone"] = "Mars"
    step = spec_of(plan_start(app, StartRequest(), halted_facts()))
    assert step.spec.clock == Clock()
    assert "feature 'timezone' is 'mars'" in step.describe()


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
    assert [(disk.target, disk.is_readonly) for disk in disks] == [
        ("vda", False), ("vdb", True), ("vdc", False), ("vdd", True),
    ]  # fmt: skip


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
    assert len(set(lines)) == len(lines) == 9
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
    def missing(name: str) -> KernelFiles:
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


def test_a_root_with_revisions_whose_driver_keeps_one_content_is_not_used_twice() -> None:
    """B12: with device-mapper files, never at the same time, in either order; the refusal names who runs."""
    template, app = template_and_app(new_registry())
    asked: list[str] = []

    def shares_live(volume: Volume) -> bool:
        asked.append(volume.vid)
        return False

    for started, running in ((app, template), (template, app)):
        words = (
            f"{started.name} cannot be started while {running.name} runs: they share the root of debian, which pool "
            f"vm-pool cannot show to others meanwhile; shut down {running.name} first"
        )
        with pytest.raises(StartError, match=f"^{words}$"):
            plan_start(started, StartRequest(), halted_facts(active=frozenset({running.uuid}), shares_live=shares_live))
    assert asked == [template.volumes["root"].vid] * 2
    _, one, two = shared_root()
    facts = halted_facts(active=frozenset({two.uuid}), shares_live=lambda _volume: False)
    assert plan_start(one, StartRequest(), facts)


def test_a_plan_changes_nothing() -> None:
    registry = new_registry()
    template, app = template_and_app(registry)
    before = (dict(app.values), dict(app.volumes), dict(template.volumes))
    plan_start(app, StartRequest(), halted_facts())
    assert (app.values, app.volumes, template.volumes) == before


@pytest.mark.parametrize(("mode", "is_refused"), [("pvh", True), ("pv", False)])
def test_a_pvh_on_a_xen_without_hvm_support_is_refused(mode: str, is_refused: bool) -> None:
    """B14: on Xen its container is hardware's as well."""
    _, app = template_and_app(new_registry(), mode=mode)
    facts = halted_facts(capabilities=HostCapabilities("xen", has_hvm=False, emulator="", kind="xen"))
    if is_refused:
        with pytest.raises(StartError, match="work is a PVH, and this host can run none"):
            plan_start(app, StartRequest(), facts)
    else:
        plan_start(app, StartRequest(), facts)
