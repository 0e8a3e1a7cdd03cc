"""One throw-away machine under QEMU: its command line, its process, its channel, its end."""

import dataclasses
import shutil
import socket
import subprocess
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Self

from crannog.errors import HypervisorError
from crannog.guest.agent import PORT_NAME
from lab.share import DIES_WITH_PARENT

_EMULATOR = "qemu-system-x86_64"


@dataclasses.dataclass(frozen=True)
class MachineSpec:
    """What a machine is made of. `words` is the kernel's command line; `disk` is read, never written to."""

    kernel: str
    initramfs: str
    words: str
    disk: str
    memory: int = 2048
    """MiB."""
    vcpus: int = 2
    cpu: str = "qemu64"
    """The fewer registers it has, the less is emulated: programs of lvm2 take a third less time than with `max`."""
    hypervisor: str = ""
    """What boots in place of the kernel, and then boots that (Xen), as an ELF file; `hypervisor_words` are its own."""
    hypervisor_words: str = ""
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further folders of the host that the machine sees, read-only, by the names that it mounts them by."""


class Machine:
    """A machine that runs while its context is open; nothing of it is left afterwards.

    `link` is the host's end of the agent's channel. Its console, and QEMU's complaints, are written to the file `log`;
    without one, the terminal of this process is the machine's console.
    """

    def __init__(self, spec: MachineSpec, shares: Mapping[str, socket.socket], log: IO[bytes] | None) -> None:
        self._spec = spec
        self._shares = shares
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.link, self._far_link = socket.socketpair()

    def __enter__(self) -> Self:
        if not shutil.which(_EMULATOR):
            raise HypervisorError(f"the lab needs {_EMULATOR}, which is not installed: run scripts/setup")
        shares = {tag: share.fileno() for tag, share in self._shares.items()}
        self._process = subprocess.Popen(
            [*DIES_WITH_PARENT, *make_command(self._spec, self._far_link.fileno(), shares)],
            stdin=subprocess.DEVNULL if self._log else None,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(self._far_link.fileno(), *shares.values()),
            # Away from the terminal's keys, unless they are meant for the machine.
            process_group=0 if self._log else None,
        )
        self._far_link.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self.link.close()
        self._far_link.close()

    def wait(self, timeout: float | None) -> None:
        """Wait until the machine has ended by itself; TimeoutError after `timeout` seconds."""
        assert self._process is not None, "the machine was not started"  # noqa: S101
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None


def make_command(spec: MachineSpec, channel: int, shares: Mapping[str, int]) -> list[str]:
    """Return QEMU's command line; `channel` and `shares` (by name) are handles of connected sockets."""
    machine = ["-M", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", spec.cpu]
    size = ["-smp", str(spec.vcpus), "-m", str(spec.memory)]
    # virtiofsd reads and writes the machine's memory, so that has to be a file.
    size += ["-object", f"memory-backend-memfd,id=memory,size={spec.memory}M,share=on"]
    bare = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    # What the machine writes goes to a file that QEMU unlinks when it has made it.
    disk = ["-drive", f"file={spec.disk.replace(',', ',,')},if=virtio,format=raw,snapshot=on,cache=unsafe"]
    console = ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    agent = ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={channel}"]
    agent += ["-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
    folders: list[str] = []
    for tag, share in shares.items():
        folders += ["-chardev", f"socket,id={tag},fd={share}", "-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    entropy = ["-device", "virtio-rng-pci"]
    return [_EMULATOR, *machine, *size, *bare, *_list_boot(spec), *disk, *console, *agent, *folders, *entropy]


def _list_boot(spec: MachineSpec) -> list[str]:
    if not spec.hypervisor:
        return ["-kernel", spec.kernel, "-initrd", spec.initramfs, "-append", spec.words]
    # Multiboot: a module is its file and, after a space, its words; a comma begins the next one unless it is doubled.
    kernel = f"{spec.kernel} {spec.words}".replace(",", ",,")
    modules = f"{kernel},{spec.initramfs.replace(',', ',,')}"
    return ["-kernel", spec.hypervisor, "-initrd", modules, "-append", spec.hypervisor_words]
