"""The planner of a start (design.md, section 4): checks first, then the steps in their order."""

from collections.abc import Callable
from dataclasses import dataclass

from crannog.core.chains import netvms_to_start
from crannog.core.domain import HostCapabilities, MemoryFiles
from crannog.core.drives import Drive, DriveFile, absent_file, check_drive
from crannog.core.hypervisor_kinds import find_kind
from crannog.core.kernels import KernelFiles
from crannog.core.layers import ready_volumes
from crannog.core.memory import need_of
from crannog.core.plan import (
    AwaitAgent,
    CreatePaused,
    OpenDisplays,
    Plan,
    PrepareVolume,
    ReserveMemory,
    Resume,
    StartNetvm,
    StartRpc,
    Step,
)
from crannog.core.specification import Surroundings, build_spec
from crannog.core.templates import may_use_template, origin, template_refusal
from crannog.core.vms import LocalVM
from crannog.core.volumes import LayerState, Location, Volume
from crannog.errors import StartError, VMNotHaltedError

_MODE_WORDS = {"hvm": "an HVM", "pvh": "a PVH"}
"""What a VM is called whose mode may need hardware virtualisation."""


@dataclass(frozen=True)
class StartRequest:
    """What the caller of a start asked for.

    `wait`: True: the agent must answer; False: do not wait; None: wait if the VM is known to have an agent.
    `drive`: an image that the VM gets for this start. What boots by itself boots from it.
    """

    wait: bool | None = None
    drive: Drive | None = None
    is_shown: bool = True
    """Its displays are opened; else that is done later, when somebody claims it."""
    memory_files: MemoryFiles | None = None
    """It is started to be saved in these files."""


@dataclass(frozen=True)
class StartFacts:
    """What the planner must know of the world at this moment."""

    power_state: str
    active: frozenset[str]
    """UUIDs of the VMs that are not halted."""
    capabilities: HostCapabilities
    kernel_files: Callable[[str], KernelFiles]
    """The files of a kernel, by its name in pool linux-kernel."""
    locate: Callable[[Volume], Location]
    channel_path: str
    console_log: str
    screen_path: str = ""
    """Where QEMU serves the screen of a VM that has one."""
    drive_file: Callable[[str], DriveFile] = absent_file
    """What the path of a drive leads to."""
    shares_live: Callable[[Volume], bool] = lambda _volume: True
    """Whether the driver of a volume's pool keeps former content while new one is written."""
    layer_state: Callable[[Volume], LayerState] = lambda _volume: LayerState.ABSENT
    """What there is of a layer that is kept from start to start."""
    serving: frozenset[str] = frozenset()
    """UUIDs of the VMs that run, and neither start nor end just now."""


def plan_start(vm: LocalVM, request: StartRequest, facts: StartFacts) -> Plan:
    """Return the steps that start `vm`.

    Raises VMNotHaltedError, or StartError when a check refuses; nothing has been done then.
    """
    _check_state(vm, facts)
    _check_template(vm, facts)
    _check_capabilities(vm, facts)
    drive = _find_drive(vm, request, facts)
    kernel = facts.kernel_files(str(vm.get("kernel"))) if vm.mode.has_host_kernel() else None
    volumes = ready_volumes(vm, kernel)
    spec = build_spec(vm, volumes, _surroundings(facts, kernel), drive)
    steps: list[Step] = [StartNetvm(n.uuid, n.name, vm.uuid) for n in netvms_to_start(vm, facts.serving)]
    steps += [PrepareVolume(volume, facts.layer_state(volume)) for volume in volumes]
    steps += _reservation(vm, facts.capabilities)
    # Before the domain: a window takes longer to be there than the screen of a QEMU.
    steps += [StartRpc(vm.uuid, vm.name, chosen_user(vm))]
    steps += [OpenDisplays(vm.uuid, vm.name)] if request.is_shown else []
    steps += [CreatePaused(spec), Resume(vm.uuid)]
    if expects_agent(vm) if request.wait is None else request.wait:
        steps.append(AwaitAgent(vm.uuid, vm.name, int(vm.get("qrexec_timeout")), facts.console_log))
    return tuple(steps)


def _reservation(vm: LocalVM, capabilities: HostCapabilities) -> list[Step]:
    """Return the step that keeps memory of the host free for the VM, where VMs get theirs from the host."""
    need = need_of(vm, capabilities)
    is_ours = find_kind(capabilities).takes_host_memory
    return [ReserveMemory(vm.uuid, vm.name, need.guest, need.overhead)] if is_ours else []


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
    clashes = [(other, _shared(vm, other, facts) or _shared(other, vm, facts)) for other in others]
    running = [other.name for other, shared in clashes if shared]
    shared = next((shared for _, shared in clashes if shared), None)
    if shared:
        raise StartError(
            f"{vm.name} cannot be started while {', '.join(running)} runs: they share the {shared[1]} of "
            f"{shared[0].name}, {_reason(*shared)}; shut down {running[0]} first"
        )


def _shared(user: LocalVM, owner: LocalVM, facts: StartFacts) -> tuple[LocalVM, str] | None:
    """Return owner and name of a volume that `user` shows and cannot use beside `owner`, if there is one."""
    for name in user.volumes:
        holder, volume = origin(user, name)
        if holder is owner and not volume.can_be_used_beside(shares_live=facts.shares_live(volume)):
            return owner, name
    return None


def _reason(owner: LocalVM, name: str) -> str:
    """Return why nobody can use that volume beside its owner."""
    volume = owner.volumes[name]
    if volume.revisions_to_keep <= 0:
        return "which keeps no revisions"
    return f"which pool {volume.pool} cannot show to others meanwhile"


def _check_capabilities(vm: LocalVM, facts: StartFacts) -> None:
    if vm.mode.name in find_kind(facts.capabilities).hardware_modes and not facts.capabilities.has_hvm:
        raise StartError(
            f"{vm.name} is {_MODE_WORDS[vm.mode.name]}, and this host can run none: its hypervisor reports no guest "
            f"type 'hvm'; use virt_mode pv or another host"
        )
    if vm.mode.has_host_kernel() and not vm.get("kernel"):
        raise StartError(
            f"{vm.name} has no kernel: virt_mode {vm.mode.name} needs one from the host; "
            f"add one with 'crannog template build', or name one with 'qvm-prefs {vm.name} kernel'"
        )


def _find_drive(vm: LocalVM, request: StartRequest, facts: StartFacts) -> tuple[Drive, DriveFile] | None:
    if request.drive is None:
        return None
    file = facts.drive_file(request.drive.path)
    check_drive(vm.name, request.drive, file)
    return request.drive, file


def _surroundings(facts: StartFacts, kernel: KernelFiles | None) -> Surroundings:
    return Surroundings(
        facts.capabilities, kernel, facts.locate, facts.channel_path, facts.console_log, facts.screen_path
    )
