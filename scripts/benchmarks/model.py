"""What the model and the store cost, without any hypervisor: load, save, read, and how that grows with the VMs.

The targets are times, not ratios: the references are what the Qubes library takes for the same on a machine like this
(two cores): 950 ms to load 250 VMs, 329 ms for all properties of 250 VMs, 0.38 ms for one, 33 ms to save.
"""

import gc
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable

from benchmarks.harness import MIN_RUNS, Figure, Row
from crannog.adapters.store.file import FileStore
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM, QubeBase

SIZES = (10, 100, 250, 1000, 10000)
KERNEL = "6.1.0"
LOAD_250, LOAD_10000, GET_ALL_250, SAVE_250 = 0.060, 2.5, 0.040, 0.015
"""Targets in seconds."""

GROWTH = 1.5
"""Cost of a VM among 10,000 over its cost among 1,000: linear, but for caches that grow too small."""
GET_GROWTH = 1.25
"""One property among 10,000 VMs over one among 10: the same, but for noise."""
GETS = 20000


def populate(count: int) -> Registry:
    """Return a registry of `count` VMs as people have them: templates, a chain of netvms, and AppVMs with settings."""
    registry = Registry()
    registry.kernels = {KERNEL}
    registry.set("default_kernel", KERNEL)
    template = _new(registry, "TemplateVM", "debian-12", None)
    net = _new(registry, "AppVM", "sys-net", template)
    firewall = _new(registry, "AppVM", "sys-firewall", template)
    for vm in (net, firewall):
        vm.set("provides_network", value=True)
    firewall.set("netvm", net)
    registry.set("default_netvm", firewall)
    registry.set("default_template", template)
    labels = list(registry.labels.values())
    for number in range(count - len(registry)):
        vm = _new(registry, "AppVM", f"work-{number:05}", template)
        vm.set("label", labels[number % len(labels)])
        vm.set("memory", 400 + number % 400)
        vm.set("netvm", firewall if number % 2 else None)
        vm.set("autostart", value=number % 5 == 0)
        vm.features.update(
            {"service.network-manager": "1", "os": "Linux", "menu-items": "firefox.desktop xterm.desktop"}
        )
        vm.tags |= {"created-by-dom0", "guivm-dom0", "audiovm-dom0"}
    return registry


def _new(registry: Registry, klass: str, name: str, template: QubeBase | None) -> LocalVM:
    vm = registry.create(klass, name, str(uuid.uuid4()), template)
    if not isinstance(vm, LocalVM):
        raise TypeError(f"{name} is not a VM of this host")
    return vm


def measure_times(runs: int, action: Callable[[], object]) -> Figure:
    """Return how long an action takes; what it makes is collected outside the measured time."""
    times = []
    for _ in range(max(runs, MIN_RUNS)):
        gc.collect()
        began = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - began)
        del result
    return Figure(statistics.median(times), min(times), max(times), len(times))


def exactly(seconds: float) -> Figure:
    """Return a fixed time as a reference."""
    return Figure(seconds, seconds, seconds, 1)


class Case:
    """One store of a given size."""

    def __init__(self, folder: str, count: int) -> None:
        self.count = count
        path = os.path.join(folder, f"{count}", "qubes.xml")
        os.makedirs(os.path.join(os.path.dirname(path), "kernels", KERNEL))
        self._open = lambda: FileStore(path, os.path.join(os.path.dirname(path), "kernels"))
        self._open().save(populate(count))
        self.reopen()

    def reopen(self) -> None:
        """Read the store anew: only the one who has read the newest version may write."""
        self.store = self._open()
        self.registry = self.store.load()

    def load(self) -> Registry:
        """Load the store, as at the start of a daemon or an offline tool."""
        return self._open().load()

    def save_first(self) -> Callable[[], object]:
        """Return the first save after a load, with one VM changed."""
        self.reopen()
        return self.save_change

    def save_change(self) -> None:
        """Change one VM and save."""
        features = self.registry.find_vm("sys-net").features
        features["changed"] = str(int(features.get("changed", "0")) + 1)
        self.store.save(self.registry)

    def save_everything(self) -> Callable[[], object]:
        """Return a save that finds every VM changed: nothing that was written before can be used again."""
        for vm in self.registry:
            vm.features["round"] = str(int(vm.features.get("round", "0")) + 1)
        return lambda: self.store.save(self.registry)

    def get_all(self) -> object:
        """Read all properties of all VMs as the API shows them."""
        return [vm.describe_all() for vm in self.registry]

    def get(self) -> object:
        """Read one property many times: one that is computed over template and global properties."""
        vm = self.registry.find_vm(f"work-{(self.count - 5):05}")
        for _ in range(GETS):
            vm.describe("qrexec_timeout")
        return vm


def prepared(runs: int, prepare: Callable[[], Callable[[], object]]) -> Figure:
    """Return how long the actions take that `prepare` makes, one each run."""
    times = []
    for _ in range(max(runs, MIN_RUNS)):
        action = prepare()
        gc.collect()
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return Figure(statistics.median(times), min(times), max(times), len(times))


def per(figure: Figure, count: int) -> Figure:
    """Return a figure divided by a count."""
    return Figure(figure.median / count, figure.least / count, figure.most / count, figure.runs)


def print_costs(costs: dict[int, dict[str, Figure]]) -> None:
    """Print what a VM costs at each size, in microseconds."""
    names = list(next(iter(costs.values())))
    print("\nCost per VM in microseconds, by number of VMs:\n")
    print(f"{'':8}" + "".join(f"{name:>22}" for name in names))
    for count, figures in costs.items():
        print(f"{count:<8}" + "".join(f"{1e6 * figures[name].median:22.1f}" for name in names))
    print()


def measure(runs: int) -> list[Row]:
    """Return all rows, after printing the cost per VM."""
    with tempfile.TemporaryDirectory(prefix="crannog-bench-") as folder:
        cases = {count: Case(folder, count) for count in SIZES}
        totals = {count: measure_case(runs, case) for count, case in cases.items()}
    print_costs({count: {name: per(f, count) for name, f in figures.items()} for count, figures in totals.items()})
    small, large = totals[250], totals[10000]
    cost = {count: per(figures["load"], count) for count, figures in totals.items()}
    one = {count: per(figures["get"], GETS) for count, figures in totals.items()}
    fixed = "a fixed time"
    return [
        Row("load 250 VMs", small["load"], fixed, exactly(LOAD_250), 1),
        Row("load 10,000 VMs", large["load"], fixed, exactly(LOAD_10000), 1),
        Row("load, a VM of 10,000", cost[10000], "a VM of 1,000", cost[1000], GROWTH),
        Row("GetAll, 250 VMs", small["GetAll"], fixed, exactly(GET_ALL_250), 1),
        Row("get, 10,000 VMs", one[10000], "get, 10 VMs", one[10], GET_GROWTH),
        Row("save 250 VMs, one changed", small["save, one changed"], fixed, exactly(SAVE_250), 1),
        Row("save 250 VMs after a load", small["save after a load"], fixed, exactly(SAVE_250), 1),
        Row("save 250 VMs, all changed", small["save, all changed"], fixed, exactly(SAVE_250), 1),
    ]


def measure_case(runs: int, case: Case) -> dict[str, Figure]:
    """Return all figures of one size, in seconds."""
    return {
        "load": measure_times(runs, case.load),
        "save after a load": prepared(runs, case.save_first),
        "save, one changed": measure_times(runs, case.save_change),
        "save, all changed": prepared(runs, case.save_everything),
        "GetAll": measure_times(runs, case.get_all),
        "get": measure_times(runs, case.get),
    }
