"""What the tests of the store share: registries to compare, and real processes that work on one store."""

import os
import resource
import signal
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from crannog.adapters.store import qubes_xml
from crannog.adapters.store.file import FileStore
from crannog.adapters.store.r4_writer import R4Writer
from crannog.core.devices import Assignment
from crannog.core.labels import new_label
from crannog.core.pools import PoolConfig
from crannog.core.registry import Registry
from crannog.core.vms import QubeBase
from crannog.errors import StorageError
from tests.fakes import KERNEL, add_vm, new_registry, template_and_app

KERNELS = {KERNEL}
COUNTER = "counter"

Content = tuple[object, ...]
Work = Callable[[int, int], None]
"""What a process does; it can read orders from the first descriptor, and report through the second one."""


def content(registry: Registry) -> Content:
    """Return everything that a registry holds, as plain values that can be compared, features in their order."""

    def plain(values: dict[str, object]) -> dict[str, str]:
        return {name: f"{type(value).__name__} {value}" for name, value in values.items()}

    def devices(vm: QubeBase) -> dict[str, list[Assignment]]:
        return {c: [d for d in vm.devices if d.devclass == c] for c in {d.devclass for d in vm.devices}}

    vms = [
        (vm.qid, vm.klass, plain(vm.values), list(vm.features.items()), vm.tags, vm.volumes, devices(vm), vm.foreign)
        for vm in registry
    ]
    vms = [(*vm[:-1], dict(vm[-1])) for vm in sorted(vms, key=lambda vm: vm[0])]
    return plain(registry.values), dict(registry.labels), dict(registry.pools), dict(registry.foreign), vms


def write(registry: Registry) -> bytes:
    return R4Writer().to_bytes(registry)


def read(data: bytes | str) -> Registry:
    return qubes_xml.from_bytes(data.encode() if isinstance(data, str) else data, set(KERNELS)).registry


def again(registry: Registry) -> Registry:
    return read(write(registry))


def full_registry() -> Registry:
    """Return a registry with a bit of everything."""
    registry = new_registry()
    template, app = template_and_app(registry)
    registry.set("default_template", template)
    app.set("memory", 512)
    app.set("debug", value=True)
    app.set("label", registry.find_label("green"))
    app.features.update({"qrexec": "1", "empty": "", "odd": "<&>\"' \t\n\r]]>"})
    app.tags.add("created-by-dom0")
    app.devices = (Assignment("pci", (("backend-domain", "dom0"), ("id", "00_1b.0")), (("no-strict-reset", "True"),)),)
    registry.labels["teal"] = new_label(registry.labels.values(), "teal", "0x008080")
    registry.add_pool(PoolConfig("spare", "file", (("dir_path", "/srv/a b"),)))
    return registry


def counting_registry(number: int, vms: int) -> Registry:
    """Return a registry of so many VMs that all have `number` in a feature."""
    registry = new_registry()
    for index in range(vms):
        add_vm(registry, "StandaloneVM", f"vm{index}")
    count_to(registry, number)
    return registry


def count_to(registry: Registry, number: int) -> None:
    for vm in registry.local_vms():
        vm.features[COUNTER] = str(number)


def counters(registry: Registry) -> set[int]:
    return {int(vm.features[COUNTER]) for vm in registry.local_vms()}


def fresh_uuid() -> str:
    return str(uuid.uuid4())


@dataclass
class Process:
    """A process of a test's own. It dies with the test at the latest."""

    pid: int
    orders: int
    report: int
    is_ended: bool = False

    def read_line(self) -> str:
        """Return the next line that the process reports, empty when it has ended."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.report, 1)
            if not byte:
                break
            line += byte
        return line.decode().rstrip("\n")

    def read_rest(self) -> bytes:
        """Return all that the process still reports until its end."""
        parts = []
        while part := os.read(self.report, 65536):
            parts.append(part)
        return b"".join(parts)

    def let_go(self) -> None:
        """Give the process an order to go on."""
        os.write(self.orders, b"\n")

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Return the exit code, the negative signal for one that was killed."""
        _, status = os.waitpid(self.pid, 0)
        self.is_ended = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End it if it has not ended; may be called again."""
        if not self.is_ended:
            self.kill()
        for descriptor in {self.orders, self.report} - {-1}:
            os.close(descriptor)
        self.orders = self.report = -1


def start(work: Work) -> Process:
    """Fork a process that does `work`: it is warm at once, which 300 starts of an interpreter would not be."""
    orders, gives = os.pipe()
    report, reports = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(gives)
            os.close(report)
            work(orders, reports)
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(orders)
    os.close(reports)
    return Process(pid, gives, report)


def say(report: int, line: object) -> None:
    os.write(report, f"{line}\n".encode())


def await_order(orders: int) -> None:
    """Wait for `let_go`; end when whoever gives orders has ended."""
    if not os.read(orders, 1):
        os._exit(2)


def load_and_measure(make: Callable[[], bytes], seconds: int) -> Work:
    """Return work that reads a document and reports CPU seconds, growth of memory in MiB, and what became of it.

    The kernel ends it when it takes much more CPU time than `seconds`.
    """

    def work(_orders: int, report: int) -> None:
        data = make()
        limit = int(time.process_time()) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        memory, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            qubes_xml.from_bytes(data, set(KERNELS))
            outcome = "read"
        except StorageError as error:
            outcome = str(error)
        spent = time.process_time() - before
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        say(report, f"{spent} {grown} {outcome}")

    return work


def save_for_ever(path: str, kernels: str) -> Work:
    """Return work that loads a store once and then saves one number after the other, reporting each after its save."""

    def work(_orders: int, report: int) -> None:
        store = FileStore(path, kernels)
        store.lock.acquire("crannogd")
        registry = store.load()
        (number,) = counters(registry)
        while True:
            number += 1
            count_to(registry, number)
            store.save(registry)
            os.write(report, number.to_bytes(8, "big"))

    return work


def count_up(path: str, kernels: str, own: str, times: int) -> Work:
    """Return work that adds one to a feature of its own and to a common one, so many times, each under the lock."""

    def work(orders: int, report: int) -> None:
        store = FileStore(path, kernels)
        say(report, "ready")
        await_order(orders)
        for _ in range(times):
            store.lock.acquire("a tool")
            registry = store.load()
            features = registry.find_vm("vm0").features
            for name in (own, "common"):
                features[name] = str(int(features.get(name, "0")) + 1)
            store.save(registry)
            store.lock.release()
        say(report, "done")

    return work
