"""The planner of a start (design.md, section 4): checks first, then the steps in their order."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from crannog.core.domain import Boot, Channel, Disk, DomainSpec, HostCapabilities
from crannog.core.plan import AwaitAgent, CreatePaused, Plan, PrepareVolume, Resume, StartRpc, Step
from crannog.core.templates import may_use_template, origin, template_refusal
from crannog.core.vms import LocalVM
from crannog.core.volumes import Location, Volume
from crannog.errors import StartError, VMNotHaltedError

KERNEL_COMMAND = "root=/dev/vda rw console=ttyS0 quiet no_timer_check cryptomgr.notests"
"""What every kernel from the host is told first; a VM's own words come after, and most of them win."""

AGENT_CHANNEL = "org.crannog.agent.0"


@dataclass(frozen=True)
class StartRequest:
    """What the caller of a start asked for.

    `wait`: True: the agent must answer; False: do not wait; None: wait if the VM is known to have an agent.
    `cdrom`: absolute path of an image to boot from, or empty.
    """

    wait: bool | None = None
    cdrom: str = ""


@dataclass(frozen=True)
class StartFacts:
    """What the planner must know of the world at this moment."""

    power_state: str
    active: frozenset[str]
    """UUIDs of the VMs that are not halted."""
    capabilities: HostCapabilities
    kernel_files: Callable[[str], tuple[str, str]]
    """Paths of kernel and initramfs of a name in pool linux-kernel."""
    locate: Callable[[Volume], Location]
    channel_path: str
    console_log: str


def plan_start(vm: LocalVM, request: StartRequest, facts: StartFacts) -> Plan:
    """Return the steps that start `vm`.

    Raises VMNotHaltedError, or StartError when a check refuses; nothing has been done then.
    """
    _check_state(vm, facts)
    _check_template(vm, facts)
    _check_capabilities(vm, facts)
    if request.cdrom and vm.mode.has_host_kernel():
        raise StartError(
            f"{vm.name} cannot boot from a CD-ROM: virt_mode {vm.mode.name} boots the host's kernel; "
            f"make it an HVM with 'qvm-prefs {vm.name} virt_mode hvm'"
        )
    volumes = [_ready(vm, volume) for volume in vm.volumes.values()]
    spec = _domain(vm, request, facts, volumes)
    steps: list[Step] = [PrepareVolume(volume) for volume in volumes]
    steps += [StartRpc(vm.uuid, vm.name, chosen_user(vm)), CreatePaused(spec), Resume(vm.uuid)]
    if expects_agent(vm) if request.wait is None else request.wait:
        steps.append(AwaitAgent(vm.uuid, vm.name, int(vm.get("qrexec_timeout")), facts.console_log))
    return tuple(steps)


def expects_agent(vm: LocalVM) -> bool:
    """Tell whether the VM, or its template, has announced an agent (design.md, B13)."""
    return vm.feature("qrexec") == "1"


def chosen_user(vm: LocalVM) -> str:
    """Return the user that commands run as if somebody chose one for the VM or its template, else nothing.

    Then the agent decides, which knows what users the guest has.
    """
    owner = next((v for v in (vm, vm.template) if v and not v.is_default("default_user")), None)
    return str(owner.get("default_user")) if owner else ""


def _check_state(vm: LocalVM, facts: StartFacts) -> None:
    if facts.power_state != "Halted":
        raise VMNotHaltedError(f"{vm.name} cannot be started: it is {facts.power_state} already")


def _check_template(vm: LocalVM, facts: StartFacts) -> None:
    """Refuse what would change a disk under a running VM: only volumes with revisions may be shared live (B12)."""
    if vm.template and not may_use_template(type(vm), vm.mode.name, vm.template):
        raise StartError(template_refusal(vm.name, type(vm), vm.mode.name, vm.template))
    active = [vm.registry.find_uuid(uuid) for uuid in facts.active]
    others = sorted([o for o in active if isinstance(o, LocalVM) and o is not vm], key=lambda other: other.qid)
    clashes = [(other, _shared_in_place(vm, other) or _shared_in_place(other, vm)) for other in others]
    running = [other.name for other, shared in clashes if shared]
    shared = next((shared for _, shared in clashes if shared), None)
    if shared:
        raise StartError(
            f"{vm.name} cannot be started while {', '.join(running)} runs: they share the {shared[1]} of "
            f"{shared[0].name}, which keeps no revisions; shut down {running[0]} first"
        )


def _shared_in_place(user: LocalVM, owner: LocalVM) -> tuple[LocalVM, str] | None:
    """Return owner and name of a volume that `user` shows and `owner` writes in place, if there is one."""
    for name in user.volumes:
        holder, volume = origin(user, name)
        if holder is owner and volume.revisions_to_keep <= 0:
            return owner, name
    return None


def _check_capabilities(vm: LocalVM, facts: StartFacts) -> None:
    if vm.mode.boot is Boot.DISK and not facts.capabilities.has_hvm:
        raise StartError(
            f"{vm.name} is an HVM, and this host can run none: its hypervisor reports no guest type 'hvm'; "
            f"use virt_mode pv or another host"
        )
    if vm.mode.has_host_kernel() and not vm.get("kernel"):
        raise StartError(
            f"{vm.name} has no kernel: virt_mode {vm.mode.name} needs one from the host; "
            f"add one with 'crannog template build', or name one with 'qvm-prefs {vm.name} kernel'"
        )


def _ready(vm: LocalVM, volume: Volume) -> Volume:
    """Return the volume with its source as it is now: a layer follows its template's current size."""
    owner, source = origin(vm, volume.name)
    if owner is not vm:
        return volume.with_source(source.vid, max(source.size, volume.size))
    return replace(volume, source="")


def _domain(vm: LocalVM, request: StartRequest, facts: StartFacts, volumes: list[Volume]) -> DomainSpec:
    kernel, initrd = facts.kernel_files(str(vm.get("kernel"))) if vm.mode.has_host_kernel() else ("", "")
    return DomainSpec(
        uuid=vm.uuid,
        name=vm.name,
        virt_mode=vm.mode.name,
        memory=int(vm.get("memory")),
        vcpus=int(vm.get("vcpus")),
        boot=Boot.CDROM if request.cdrom else vm.mode.boot,
        disks=_disks(vm, request, facts, volumes),
        channels=(Channel(AGENT_CHANNEL, facts.channel_path),),
        console_log=facts.console_log,
        kernel=kernel,
        initrd=initrd,
        kernelopts=" ".join(filter(None, [KERNEL_COMMAND, vm.get("kernelopts"), f"crannog.name={vm.name}"]))
        if kernel
        else "",
        has_display=vm.mode.has_display,
    )


def _disks(vm: LocalVM, request: StartRequest, facts: StartFacts, volumes: list[Volume]) -> tuple[Disk, ...]:
    """Name the disks in the order of the volumes; a guest that never said it knows virtio gets SATA disks."""
    is_virtio = vm.mode.has_host_kernel() or vm.feature("virtio-disk") == "1"
    bus, prefix = ("virtio", "vd") if is_virtio else ("sata", "sd")
    disks = []
    for letter, volume in zip("abcdef", volumes, strict=False):
        location = facts.locate(volume)
        disks.append(Disk(location.path, prefix + letter, bus, location.format, is_readonly=not volume.rw))
    if request.cdrom:
        letter = "a" if is_virtio else "abcdef"[len(disks)]
        disks.append(Disk(request.cdrom, "sd" + letter, "sata", "raw", "cdrom", is_readonly=True))
    return tuple(disks)
