"""One throw-away machine under QEMU: its command line, its process, its channel, its end."""

import dataclasses
import shutil
import socket
import subprocess
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


class Machine:
    """A machine that runs while its context is open; nothing of it is left afterwards.

    `link` is the host's end of the agent's channel. Its console, and QEMU's complaints, are written to the file `log`;
    without one, the terminal of this process is the machine's console.
    """

    def __init__(self, spec: MachineSpec, share: socket.socket, log: IO[bytes] | None) -> None:
        self._spec = spec
        self._share = share
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.link, self._far_link = socket.socketpair()

    def __enter__(self) -> Self:
        if not shutil.which(_EMULATOR):
            raise HypervisorError(f"the lab needs {_EMULATOR}, which is not installed: run scripts/setup")
        handles = (self._far_link.fileno(), self._share.fileno())
        self._process = subprocess.Popen(
            [*DIES_WITH_PARENT, *make_command(self._spec, *handles)],
            stdin=subprocess.DEVNULL if self._log else None,
            stdout=self._log,
            stderr=self._log,
            pass_fds=handles,
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


def make_command(spec: MachineSpec, channel: int, share: int) -> list[str]:
    """Return QEMU's command line; `channel` and `share` are handles of connected sockets."""
    machine = ["-M", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", spec.cpu]
    size = ["-smp", str(spec.vcpus), "-m", str(spec.memory)]
    # virtiofsd reads and writes the machine's memory, so that has to be a file.
    size += ["-object", f"memory-backend-memfd,id=memory,size={spec.memory}M,share=on"]
    bare = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    boot = ["-kernel", spec.kernel, "-initrd", spec.initramfs, "-append", spec.words]
    # What the machine writes goes to a file that QEMU unlinks when it has made it.
    disk = ["-drive", f"file={spec.disk.replace(',', ',,')},if=virtio,format=raw,snapshot=on,cache=unsafe"]
    console = ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    agent = ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={channel}"]
    agent += ["-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
    folder = ["-chardev", f"socket,id=share,fd={share}", "-device", "vhost-user-fs-pci,chardev=share,tag=project"]
    entropy = ["-device", "virtio-rng-pci"]
    return [_EMULATOR, *machine, *size, *bare, *boot, *disk, *console, *agent, *folder, *entropy]
