"""Plans: what a start or a stop consists of, as a list of frozen steps.

The planner decides, the runner does: a planner gets all it needs as values and does no I/O, so that `--dry-run` can
print a plan and a test can compare it. Each step says its own name; what it does is known to the runner alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from crannog.core.domain import DomainSpec
from crannog.core.volumes import LayerState, Volume

_FATES = {
    LayerState.ABSENT: "a new layer, which is kept",
    LayerState.CURRENT: "the layer of its last start was kept",
    LayerState.OUTDATED: "a new layer, as what is below the last one has changed",
}


@dataclass(frozen=True)
class Step:
    """One step for one VM."""

    stage: ClassVar[str] = ""

    def describe(self) -> str:
        """Return a line about what the step will do."""
        return self.stage

    def tell(self) -> str:
        """Return what the user is told when it is done."""
        return self.stage


@dataclass(frozen=True)
class PrepareVolume(Step):
    """Make a volume ready."""

    stage: ClassVar[str] = "volume ready"
    volume: Volume
    layer: LayerState = LayerState.ABSENT
    """What there is of its layer, if that is kept from start to start."""
    copy_of: str = ""
    """File that holds what was written to the same volume of another VM, to begin with."""

    def describe(self) -> str:
        """Return which volume, and over what it is a layer."""
        if self.copy_of:
            return f"prepare volume {self.volume.vid} as a copy of {self.copy_of}"
        over = f" as a layer over {self.volume.source}" if self.volume.snap_on_start else ""
        return f"prepare volume {self.volume.vid}{over}{self._describe_layer()}"

    def tell(self) -> str:
        """Return what became of a layer that is kept (design.md, B2)."""
        return f"{self.stage}{self._describe_layer()}"

    def _describe_layer(self) -> str:
        return f" (debug mode: {_FATES[self.layer]})" if self.volume.keeps_layer else ""


@dataclass(frozen=True)
class StartNetvm(Step):
    """See that a VM runs which leads `client`, a UUID, to the network."""

    stage: ClassVar[str] = "netvm runs"
    uuid: str
    name: str
    client: str

    def describe(self) -> str:
        """Return which."""
        return f"start {self.name} before it, which leads to its network"


@dataclass(frozen=True)
class ReserveMemory(Step):
    """Promise the VM memory of the host, in MiB: for the guest, and `overhead` for its hypervisor process."""

    stage: ClassVar[str] = "memory reserved"
    uuid: str
    name: str
    mib: int
    overhead: int

    def describe(self) -> str:
        """Return how much."""
        return f"reserve {self.mib} MiB of memory, and {self.overhead} MiB for QEMU"


@dataclass(frozen=True)
class StartRpc(Step):
    """Start the VM's RPC process. It waits for the guest's channel by itself."""

    stage: ClassVar[str] = "RPC process started"
    uuid: str
    name: str
    default_user: str

    def describe(self) -> str:
        """Return whose process."""
        return f"start the RPC process of {self.name}"


@dataclass(frozen=True)
class OpenDisplays(Step):
    """Begin to show the VM: its screen at once, its windows when its GUI agent is there."""

    stage: ClassVar[str] = "displays ready"
    uuid: str
    name: str

    def describe(self) -> str:
        """Return whose displays."""
        return f"open the displays of {self.name}"


@dataclass(frozen=True)
class CreatePaused(Step):
    """Create the domain with its processors stopped."""

    stage: ClassVar[str] = "domain created, paused"
    spec: DomainSpec

    def describe(self) -> str:
        """Return the domain's main figures."""
        spec = self.spec
        growth = f" to {spec.maxmem}" if spec.can_grow else ""
        size = f"{spec.memory}{growth} MiB, {spec.vcpus} processors"
        warnings = "".join(f" ({warning})" for warning in spec.warnings)
        begin = f"boot from {spec.boot}"
        if spec.memory_files and spec.memory_files.is_saved:
            begin = f"restored from {spec.memory_files.memory}"
        return f"create domain {spec.name}: {spec.virt_mode}, {size}, {begin}{warnings}"


@dataclass(frozen=True)
class Resume(Step):
    """Let the processors run."""

    stage: ClassVar[str] = "running"
    uuid: str

    def describe(self) -> str:
        """Return what happens."""
        return "resume the domain"


@dataclass(frozen=True)
class AwaitAgent(Step):
    """Wait until the guest's agent answers. `timeout` is in seconds."""

    stage: ClassVar[str] = "agent answers"
    uuid: str
    name: str
    timeout: int
    console_log: str

    def describe(self) -> str:
        """Return how long."""
        return f"wait up to {self.timeout} s for the agent"


@dataclass(frozen=True)
class Renew(Step):
    """Have a guest that was restored become one of its own, before anybody gets it. `timeout` is in seconds."""

    stage: ClassVar[str] = "identity is its own"
    uuid: str
    name: str
    timeout: int

    def describe(self) -> str:
        """Return what is replaced."""
        return f"give it the identity of {self.name}: machine-id, host keys, random numbers, clock"


Plan = tuple[Step, ...]
