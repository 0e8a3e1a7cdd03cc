"""The smallest stand-ins for hypervisor and agents, and a daemon's inside built around them with the real rest."""

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from crannog.adapters.display.headless import HeadlessDisplays
from crannog.adapters.guestdb.host import XenStoreHost
from crannog.adapters.hostdevices.sysfs import SysfsDevices
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.announcement import AgentStatus
from crannog.core.domain import (
    Boot,
    Channel,
    Disk,
    DomainInfo,
    DomainSpec,
    DomainState,
    DomainStats,
    HostCapabilities,
    MemoryFiles,
)
from crannog.core.kernels import KernelFiles
from crannog.core.pools import DEFAULT_POOL
from crannog.core.registry import Registry
from crannog.core.runtime import HostFacts
from crannog.core.startup import StartFacts
from crannog.core.vms import LocalVM, QubeBase
from crannog.core.volumes import Location
from crannog.daemon.inventory import Inventory
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.machines import Machines
from crannog.daemon.world import World
from crannog.errors import HypervisorError, RpcError
from crannog.hostfacts import HostMemory
from crannog.ports.channel import Describe
from crannog.ports.guestdb import HostTrees
from crannog.ports.hypervisor import Hypervisor, StateListener
from crannog.ports.storage import Pool

__all__ = ["Boot", "Channel", "Disk", "DomainInfo", "DomainState", "HostCapabilities", "Location"]

KERNEL = "6.1.0-test"
AppAndTemplate = tuple[LocalVM, LocalVM]


class FakeHypervisor:
    """Keeps domains in a dict. `failing` names the methods that shall fail."""

    def __init__(self) -> None:
        self.domain_states: dict[str, DomainInfo] = {}
        self.specs: list[DomainSpec] = []
        self.failing: set[str] = set()
        self.enlarged: list[tuple[str, int]] = []
        """Disks that were made larger, with their sizes in bytes."""
        self.has_hvm = True
        self.facts: HostFacts | None = None
        self.is_shared = False
        self.saves_memory = False
        self.saved: list[str] = []
        """UUIDs of the domains whose memory was saved."""
        self._listener: StateListener = lambda _uuid, _state: None

    def _fail_if_asked(self, method: str) -> None:
        if method in self.failing:
            raise HypervisorError(f"{method} failed on purpose")

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    def listen(self, listener: StateListener) -> None:
        self._listener = listener

    async def capabilities(self) -> HostCapabilities:
        return HostCapabilities("tcg", self.has_hvm, "/usr/bin/qemu-system-x86_64")

    async def domains(self) -> list[DomainInfo]:
        return list(self.domain_states.values())

    async def end_strays(self, ours: frozenset[str]) -> list[str]:
        del ours
        return []

    async def create_paused(self, spec: DomainSpec) -> DomainInfo:
        self._fail_if_asked("create_paused")
        if spec.name in {info.name for info in self.domain_states.values()}:
            raise HypervisorError(f"{spec.name} could not be started: a domain of that name exists")
        if spec.memory_files and spec.memory_files.is_saved and not Path(spec.memory_files.state).is_file():
            raise HypervisorError(f"{spec.memory_files.state} cannot be read")
        self.specs.append(spec)
        info = DomainInfo(spec.uuid, spec.name, DomainState.PAUSED, len(self.specs))
        self.domain_states[spec.uuid] = info
        return info

    async def machine_key(self, spec: DomainSpec, name: str) -> str:
        del name
        return repr(spec) if self.saves_memory else ""

    async def save_memory(self, uuid: str, files: MemoryFiles) -> None:
        self._fail_if_asked("save_memory")
        self._check_there(uuid)
        if not self.saves_memory:
            raise HypervisorError(f"{uuid} cannot be saved here")
        Path(files.state).write_text(uuid)
        self.saved.append(uuid)

    async def resume(self, uuid: str) -> None:
        self._fail_if_asked("resume")
        self._move(uuid, DomainState.RUNNING)

    async def pause(self, uuid: str) -> None:
        self._fail_if_asked("pause")
        self._move(uuid, DomainState.PAUSED)

    def _check_there(self, uuid: str) -> None:
        if uuid not in self.domain_states:
            raise HypervisorError(f"{uuid} has no domain")

    def _move(self, uuid: str, state: DomainState) -> None:
        self._check_there(uuid)
        self.domain_states[uuid] = replace(self.domain_states[uuid], state=state)
        self._listener(uuid, state)

    async def statistics(self) -> list[DomainStats]:
        self._fail_if_asked("statistics")
        return [self._stats(uuid) for uuid in self.domain_states]

    def _stats(self, uuid: str) -> DomainStats:
        return DomainStats(uuid, *self._memory(uuid), 5_000_000_000, 2, time.monotonic())

    def _memory(self, uuid: str) -> tuple[int, int]:
        """Return what a domain has, and may have, in KiB; one that was not created here has 400 MiB."""
        spec = next((spec for spec in reversed(self.specs) if spec.uuid == uuid), None)
        memory = spec.memory << 10 if spec else 409600
        return memory, memory

    async def console(self, uuid: str) -> str:
        self._fail_if_asked("console")
        self._check_there(uuid)
        return f"/dev/pts/{self.domain_states[uuid].xid}"

    async def destroy(self, uuid: str) -> None:
        self._fail_if_asked("destroy")
        if self.domain_states.pop(uuid, None):
            self._listener(uuid, DomainState.ABSENT)

    async def enlarge_disk(self, uuid: str, path: str, size: int) -> None:
        self._fail_if_asked("enlarge_disk")
        self._check_there(uuid)
        spec = next(spec for spec in reversed(self.specs) if spec.uuid == uuid)
        if path not in {disk.path for disk in spec.disks}:
            raise HypervisorError(f"making {path} larger failed: there is no such disk")
        self.enlarged.append((path, size))

    async def press_power_button(self, uuid: str) -> None:
        await self.destroy(uuid)

    async def usage(self, uuid: str) -> DomainStats | None:
        return self._stats(uuid) if uuid in self.domain_states else None

    async def screenshot(self, uuid: str) -> bytes:
        self._fail_if_asked("screenshot")
        self._check_there(uuid)
        return b"P6 1 1 255 " + uuid[:3].encode()

    async def host_facts(self) -> HostFacts | None:
        return self.facts

    async def diagnose(self) -> list[str]:
        return ["everything here is a stand-in"]


class FakeAgents:
    """RPC processes that never say anything."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.statuses: dict[str, AgentStatus] = {}
        self.listeners: list[Callable[[str, AgentStatus], None]] = []
        self.describe: Describe = lambda _uuid: {}
        self.refreshed: list[str] = []
        self.introduced: list[str] = []
        self.exercised: list[str] = []
        self.failing: set[str] = set()
        self.asleep: list[str] = []
        self.renewed: list[str] = []
        """Guests that were put to sleep, and those that became other ones."""
        self.clocks: list[tuple[str, int]] = []
        """Guests whose clocks were set."""
        self.entries: dict[str, bytes] = {}
        """What guests have written to their guest DBs."""

    def provide(self, describe: Describe) -> None:
        self.describe = describe

    def refresh(self, uuid: str) -> None:
        self.refreshed.append(uuid)

    async def introduce(self, uuid: str) -> None:
        self.introduced.append(uuid)

    def set_clock(self, uuid: str, nanoseconds: int) -> None:
        self.clocks.append((uuid, nanoseconds))

    async def exercise(self, uuid: str) -> None:
        self.exercised.append(uuid)

    async def put_to_sleep(self, uuid: str) -> None:
        self._fail_if_asked("put_to_sleep")
        self.asleep.append(uuid)

    async def renew(self, uuid: str, name: str, timeout: float) -> None:  # noqa: ASYNC109
        del name, timeout
        self._fail_if_asked("renew")
        self.renewed.append(uuid)

    def _fail_if_asked(self, method: str) -> None:
        if method in self.failing:
            raise RpcError(f"{method} failed on purpose")

    async def read_entries(self, uuid: str, prefix: str) -> dict[str, bytes]:
        del uuid
        return {path: value for path, value in self.entries.items() if path.startswith(prefix)}

    def listen(self, listener: Callable[[str, AgentStatus], None]) -> None:
        self.listeners.append(listener)

    async def start(self, uuid: str, name: str, default_user: str) -> None:
        del name, default_user
        self.running.add(uuid)

    async def adopt(self, uuid: str, name: str, default_user: str) -> None:
        await self.start(uuid, name, default_user)

    async def stop(self, uuid: str) -> None:
        self.running.discard(uuid)

    async def end_strays(self) -> list[str]:
        return []

    def status(self, uuid: str) -> AgentStatus | None:
        return self.statuses.get(uuid)

    async def close(self) -> None:
        self.running.clear()

    async def power_off(self, uuid: str) -> bool:
        del uuid
        return False


class FakeMemory(HostMemory):
    """A host with much memory, unless a test says otherwise; `used` is what VMs have of it by now."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.free = 2**20
        self.used: dict[str, int] = {}

    def available(self) -> int:
        return self.free

    def resident(self, uuids: frozenset[str]) -> dict[str, int]:
        return {uuid: mib for uuid, mib in self.used.items() if uuid in uuids}


@dataclass
class Inside:
    """A daemon without its process: everything real but the hypervisor and the agents."""

    paths: Paths
    store: FileStore
    pool: Qcow2Pool
    hypervisor: FakeHypervisor
    agents: FakeAgents
    machines: Machines
    registry: Registry
    host_memory: FakeMemory = field(default_factory=FakeMemory)
    displays: HeadlessDisplays = field(default_factory=HeadlessDisplays)
    trees: HostTrees = field(default_factory=XenStoreHost)
    lifecycle: Lifecycle = field(init=False)
    inventory: Inventory = field(init=False)

    def __post_init__(self) -> None:
        kernels = KernelPool(self.paths.kernels)
        pools: dict[str, Pool] = {DEFAULT_POOL: self.pool}
        host_devices = SysfsDevices(f"{self.paths.home}/sys")
        world = World(
            self.paths,
            self.store,
            self.hypervisor,
            self.agents,
            pools,
            kernels,
            host_devices,
            self.host_memory,
            self.displays,
            self.trees,
        )
        self.hypervisor.listen(self.machines.change)
        self.inventory = Inventory(world, self.registry, self.machines)
        self.lifecycle = self.inventory.lifecycle
        self.lifecycle.grace = 10  # so that a slow machine makes no other outcome

    def reloaded(self) -> Registry:
        """Return the registry that the file on disk holds now."""
        return self.store.load()


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder whose path is short enough for unix sockets below it: those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder:
        yield Path(folder)


def build_inside(
    home: Path,
    hypervisor: Hypervisor | None = None,
    displays: HeadlessDisplays | None = None,
    trees: HostTrees | None = None,
) -> Inside:
    """Make the home of a daemon with one kernel, and its inside; over a real hypervisor if one is given."""
    paths = Paths(str(home), str(home / "cache"))
    for folder in (f"{home}/run", paths.logs, f"{paths.kernels}/{KERNEL}"):
        Path(folder).mkdir(parents=True)
    for file in ("vmlinuz", "initramfs"):
        Path(paths.kernels, KERNEL, file).touch()
    store = FileStore(paths.store, paths.kernels)
    registry = store.load()
    registry.set("default_kernel", KERNEL)
    pool = Qcow2Pool(DEFAULT_POOL, f"{paths.pools}/{DEFAULT_POOL}")
    chosen = cast("FakeHypervisor", hypervisor) if hypervisor else FakeHypervisor()
    return Inside(
        paths,
        store,
        pool,
        chosen,
        FakeAgents(),
        Machines(),
        registry,
        displays=displays or HeadlessDisplays(),
        trees=trees or XenStoreHost(lambda: ""),
    )


def new_registry() -> Registry:
    """Return an empty registry with one kernel, the default one."""
    registry = Registry()
    registry.kernels = {KERNEL}
    registry.set("default_kernel", KERNEL)
    return registry


def add_vm(
    registry: Registry, klass: str, name: str, template: QubeBase | None = None, mode: str | None = None
) -> LocalVM:
    """Add a VM with a UUID of its own, and give it a virt_mode."""
    vm = registry.create(klass, name, str(uuid.uuid4()), template)
    assert isinstance(vm, LocalVM)
    if mode:
        vm.set("virt_mode", mode)
    return vm


def template_and_app(registry: Registry, mode: str = "pvh") -> AppAndTemplate:
    """Return a TemplateVM `debian` and an AppVM `work` that starts from it."""
    template = add_vm(registry, "TemplateVM", "debian", mode=mode)
    return template, add_vm(registry, "AppVM", "work", template)


def halted_facts(**changes: object) -> StartFacts:
    """Return what a planner is told of a quiet world."""
    values: dict[str, object] = {
        "power_state": "Halted",
        "active": frozenset(),
        "capabilities": HostCapabilities("tcg", has_hvm=True, emulator="/usr/bin/qemu-system-x86_64"),
        "kernel_files": lambda name: KernelFiles(
            f"/kernels/{name}/vmlinuz", f"/kernels/{name}/initramfs", f"/kernels/{name}/modules.img", has_layers=True
        ),
        "locate": lambda volume: Location(f"/pool/{volume.vid}", "raw" if volume.name == "private" else "qcow2"),
        "channel_path": "/run/channel.sock",
        "console_log": "/log/console.log",
    }
    return StartFacts(**{**values, **changes})  # type: ignore[arg-type]
