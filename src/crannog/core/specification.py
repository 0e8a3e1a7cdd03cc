"""A VM's settings as the specification of its domain: memory, processors, disks, kernel, clock, display."""

from collections.abc import Callable
from dataclasses import dataclass

from crannog.core import clock
from crannog.core.defaults import is_balanced
from crannog.core.displays import has_screen, video_model
from crannog.core.domain import Boot, Channel, Disk, DomainSpec, HostCapabilities
from crannog.core.drives import Drive, DriveFile, DriveKind, FileKind
from crannog.core.hypervisor_kinds import find_kind
from crannog.core.kernels import KernelFiles
from crannog.core.vms import LocalVM, QubeBase
from crannog.core.volumes import KERNEL, VOLATILE, Location, Volume

AGENT_CHANNEL = "org.crannog.agent.0"
_VIRTIO_DISK = "virtio-disk"
_BOOT_MODE_WORDS = "boot-mode.kernelopts."
"""Features with this prefix hold what the kernel is told in a boot mode (property `bootmode`)."""


@dataclass(frozen=True)
class Surroundings:
    """What a specification needs of the host. A VM that boots by itself has no `kernel` from it."""

    capabilities: HostCapabilities
    kernel: KernelFiles | None
    locate: Callable[[Volume], Location]
    channel_path: str
    console_log: str
    screen_path: str = ""


def build_spec(
    vm: LocalVM, volumes: list[Volume], around: Surroundings, drive: tuple[Drive, DriveFile] | None
) -> DomainSpec:
    """Return the domain of `vm` with these volumes, and with a drive for this start if one was named.

    Raises HypervisorError for a host whose kind of hypervisor is not known, and what `locate` raises.
    """
    its_clock, warning = clock.parse_clock(vm.feature(clock.FEATURE))
    card, remark = video_model(vm)
    kernel = around.kernel
    disks = _disks(vm, volumes, around, drive)
    return DomainSpec(
        uuid=vm.uuid,
        name=vm.name,
        virt_mode=vm.mode.name,
        memory=int(vm.get("memory")),
        maxmem=most_memory(vm, around.capabilities),
        vcpus=int(vm.get("vcpus")),
        boot=Boot.DRIVE if drive and not vm.mode.has_host_kernel() else vm.mode.boot,
        disks=disks,
        channels=(Channel(AGENT_CHANNEL, around.channel_path),),
        console_log=around.console_log,
        kernel=kernel.kernel if kernel else "",
        initrd=kernel.initrd if kernel else "",
        kernelopts=_kernel_command(vm, around.capabilities, _disk_words(volumes, disks, kernel)) if kernel else "",
        has_display=has_screen(vm),
        display_socket=around.screen_path if has_screen(vm) else "",
        video_model=card,
        clock=its_clock,
        is_disposable=vm.is_disposable,
        warnings=tuple(filter(None, (warning, remark))),
    )


def most_memory(vm: LocalVM, capabilities: HostCapabilities) -> int:
    """Return the memory in MiB that the VM may grow to; what it starts with when it is not balanced.

    Where room to grow makes the start slow, only a `maxmem` that somebody chose counts.
    """
    memory = int(vm.get("memory"))
    is_wanted = find_kind(capabilities).starts_small or _is_chosen(vm, "maxmem")
    return max(memory, int(vm.get("maxmem"))) if is_wanted and is_balanced(vm) else memory


def _is_chosen(vm: LocalVM, name: str) -> bool:
    """Tell whether somebody set the property, of the VM or of one that it starts from."""
    holder: QubeBase | None = vm
    while holder and holder.is_default(name):
        holder = holder.template
    return holder is not None


def _kernel_command(vm: LocalVM, capabilities: HostCapabilities, disk_words: str) -> str:
    """Return the kernel's command line. The VM's own words come after ours, and most of them win."""
    first = find_kind(capabilities).kernel_command(is_verbose=bool(vm.get("debug")))
    mode = vm.feature(_BOOT_MODE_WORDS + str(vm.get("bootmode")))
    own = f"crannog.disposable systemd.machine_id={vm.uuid.replace('-', '')}" if vm.is_disposable else ""
    return " ".join(filter(None, [first, disk_words, own, vm.get("kernelopts"), mode, f"crannog.name={vm.name}"]))


def _disk_words(volumes: list[Volume], disks: tuple[Disk, ...], kernel: KernelFiles) -> str:
    """Return what the initramfs is told of the disks that are for it (guest/layers.sh); older ones know no such words.

    Each kind of hypervisor names virtual disks in the order in which they are given.
    """
    if not kernel.has_layers:
        return ""
    names = [volume.name for volume in volumes]
    words = [f"crannog.volatile=/dev/{disks[names.index(VOLATILE)].target}"] if VOLATILE in names else []
    its_modules = [disk for disk in disks if kernel.modules and disk.path == kernel.modules]
    return " ".join([*words, *(f"crannog.modules=/dev/{disk.target}" for disk in its_modules)])


def _disks(
    vm: LocalVM, volumes: list[Volume], around: Surroundings, drive: tuple[Drive, DriveFile] | None
) -> tuple[Disk, ...]:
    """Return the volumes in their order, the kernel's last, then the drive. Who gets a kernel knows virtio."""
    disks = [_disk(around.locate(volume), volume) for volume in volumes]
    if around.kernel and around.kernel.modules and KERNEL in vm.volumes:
        disks.append(Disk(around.kernel.modules, format="raw", is_readonly=True))
    if drive:
        disks.append(_drive_disk(vm, *drive))
    is_virtio = vm.mode.has_host_kernel() or vm.feature(_VIRTIO_DISK) == "1"
    return find_kind(around.capabilities).name_disks(disks, is_virtio=is_virtio)


def _disk(location: Location, volume: Volume) -> Disk:
    is_block = location.is_block
    return Disk(location.path, format=location.format, is_readonly=not volume.rw, is_block=is_block)


def _drive_disk(vm: LocalVM, drive: Drive, file: DriveFile) -> Disk:
    """Return the drive as a disk; where the host's kernel boots, as one more disk: such guests have no CD-ROM drive."""
    is_cdrom = drive.kind is DriveKind.CDROM and not vm.mode.has_host_kernel()
    return Disk(
        file.path,
        format="raw",  # never what the image says of itself: a guest could make it name other files
        device="cdrom" if is_cdrom else "disk",
        is_readonly=not drive.is_writable,
        is_block=file.kind is FileKind.DEVICE,
        boots_first=not vm.mode.has_host_kernel(),
    )
