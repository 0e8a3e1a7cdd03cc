"""The Hypervisor port on real QEMU, with guests of 512 bytes.

A process can open one folder of the in-process driver in its life, so all tests of this module share one home.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest
import pytest_asyncio

from crannog.adapters.libvirt import accel
from crannog.adapters.libvirt.accel import choose_accel, find_emulator, runs_guest
from crannog.adapters.libvirt.connection import LibvirtHypervisor
from crannog.adapters.libvirt.domain_xml import build_domain_xml
from crannog.config import Paths, Settings
from crannog.core.domain import Boot, Channel, Disk, DomainSpec, DomainState, HostCapabilities
from crannog.errors import HypervisorError
from crannog.ports.hypervisor import Hypervisor
from tests.contract.hypervisor_contract import *  # noqa: F403 - the tests
from tests.contract.hypervisor_contract import until
from tests.fakes import add_vm, build_inside, short_folder
from tests.processes import list_all
from tests.vm.libvirtd import Libvirtd

pytestmark = pytest.mark.vm

HALT = b"\xfb\xf4\xeb\xfd"  # sti; hlt; jmp to hlt
POWER_OFF = b"\xba\x04\x06\xb8\x00\x20\xef"  # mov dx, 0x604; mov ax, SLP_EN; out dx, ax (ACPI PM1a_CNT of q35)

# mov dx, LSR; in al, dx; test al, 1; jz to in; mov dx, COM1; in al, dx; out dx, al; jmp to the beginning
ECHO = b"\xba\xfd\x03\xec\xa8\x01\x74\xfb\xba\xf8\x03\xec\xee\xeb\xf1"


def say(text: bytes) -> bytes:
    # mov dx, COM1; then for each byte: mov al, byte; out dx, al
    return b"\xba\xf8\x03" + b"".join(b"\xb0" + bytes((byte,)) + b"\xee" for byte in text)


def make_disk(path: Path, code: bytes) -> Disk:
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return Disk(str(path), "vda", format="raw")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    folder = tmp_path_factory.mktemp("h")
    return Paths(str(folder), str(folder / "cache"))


def make_settings(accel: str = "tcg", uri: str = "qemu:///embed") -> Settings:
    settings = Settings()
    settings.accel = accel
    settings.libvirt_uri = uri
    return settings


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    daemon = Libvirtd()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture(params=["embed", "system"])
def settings(request: pytest.FixtureRequest) -> Settings:
    if request.param == "embed":
        return make_settings()
    return make_settings(uri=request.getfixturevalue("libvirtd").uri)


@pytest_asyncio.fixture
async def hypervisor(paths: Paths, settings: Settings) -> AsyncIterator[Hypervisor]:
    adapter: Hypervisor = LibvirtHypervisor(paths, settings)
    await adapter.open()
    try:
        yield adapter
        for domain in await adapter.domains():
            await adapter.destroy(domain.uuid)
    finally:
        await adapter.close()


@pytest.fixture
def spec(tmp_path: Path) -> DomainSpec:
    return DomainSpec(
        uuid=str(uuid4()),
        name="work",
        virt_mode="hvm",
        memory=32,
        vcpus=1,
        boot=Boot.DISK,
        disks=(make_disk(tmp_path / "disk.raw", say(b"island\n") + HALT),),
        channels=(Channel("org.crannog.agent.0", str(tmp_path / "agent.sock")),),
        console_log=str(tmp_path / "log/console.log"),
    )


async def wait_for(path: str, text: str) -> None:
    for _ in range(3000):
        if text in Path(path).read_text(errors="replace"):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} does not say {text}")


def emulators(uuid: str) -> list[int]:
    return [pid for pid, words in list_all().items() if uuid in words]


async def test_a_domain_lives_and_ends(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    told: list[tuple[str, DomainState]] = []
    hypervisor.listen(lambda uuid, state: told.append((uuid, state)))
    made = await hypervisor.create_paused(spec)
    assert (made.uuid, made.name, made.state) == (spec.uuid, "work", DomainState.PAUSED)
    assert await hypervisor.domains() == [made]
    assert Path(spec.console_log).read_text() == ""
    await hypervisor.resume(spec.uuid)
    await wait_for(spec.console_log, "island")
    assert await hypervisor.domains() == [replace(made, state=DomainState.RUNNING)]
    usage = await hypervisor.usage(spec.uuid)
    assert usage
    assert usage.memory_max == 32 << 10
    assert usage.cpu_time > 0
    await hypervisor.destroy(spec.uuid)
    assert await hypervisor.domains() == []
    assert emulators(spec.uuid) == []
    await asyncio.sleep(0.05)
    states = [state for uuid, state in told if uuid == spec.uuid]
    assert states[:2] == [DomainState.PAUSED, DomainState.RUNNING]
    assert states[-1] is DomainState.ABSENT


async def test_an_end_is_told_at_once(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    """Libvirt looks each 0.2 s whether QEMU is gone, and each 2 s for one that init does not bury."""
    ended = asyncio.Event()
    hypervisor.listen(lambda _uuid, state: ended.set() if state is DomainState.ABSENT else None)
    await hypervisor.create_paused(spec)
    await hypervisor.resume(spec.uuid)
    ending = asyncio.create_task(hypervisor.destroy(spec.uuid))
    await asyncio.wait_for(ended.wait(), 0.7)
    assert emulators(spec.uuid) == []
    await ending


async def test_a_guest_that_powers_off_is_absent(hypervisor: Hypervisor, spec: DomainSpec, tmp_path: Path) -> None:
    ended = asyncio.Event()
    hypervisor.listen(lambda _uuid, state: ended.set() if state is DomainState.ABSENT else None)
    off = replace(spec, disks=(make_disk(tmp_path / "off.raw", POWER_OFF + HALT),))
    await hypervisor.create_paused(off)
    await hypervisor.resume(spec.uuid)
    await asyncio.wait_for(ended.wait(), 60)
    assert await hypervisor.domains() == []
    assert await hypervisor.usage(spec.uuid) is None


async def test_an_absent_domain_is_tolerated_where_the_port_says_so(hypervisor: Hypervisor) -> None:
    uuid = str(uuid4())
    await hypervisor.destroy(uuid)
    await hypervisor.press_power_button(uuid)
    assert await hypervisor.usage(uuid) is None
    with pytest.raises(HypervisorError, match="start the VM again"):
        await hypervisor.resume(uuid)
    with pytest.raises(HypervisorError, match="has no screen"):
        await hypervisor.screenshot(uuid)


async def test_channels_can_be_connected_before_the_guest_runs(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    await hypervisor.create_paused(spec)
    _, writer = await asyncio.open_unix_connection(spec.channels[0].path)
    writer.close()
    await writer.wait_closed()


async def test_the_screen_is_photographed_and_served(hypervisor: Hypervisor, spec: DomainSpec, tmp_path: Path) -> None:
    socket = str(tmp_path / "display.sock")
    await hypervisor.create_paused(replace(spec, has_display=True, display_socket=socket))
    await hypervisor.resume(spec.uuid)
    await hypervisor.press_power_button(spec.uuid)
    picture = await hypervisor.screenshot(spec.uuid)
    assert picture.startswith((b"P6", b"\x89PNG"))
    reader, writer = await asyncio.open_unix_connection(socket)
    assert await reader.readexactly(4) == b"RFB "
    writer.close()
    await writer.wait_closed()


async def test_a_domain_without_a_screen_says_so(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    await hypervisor.create_paused(spec)
    with pytest.raises(HypervisorError, match=f"the screenshot of {spec.uuid} failed"):
        await hypervisor.screenshot(spec.uuid)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"memory": 1 << 30}, "work could not be started: .*give the VM less"),
        ({"boot": Boot.KERNEL, "kernel": "/no/kernel"}, "could not open kernel file '/no/kernel'"),
        ({"disks": (Disk("/no/disk", "vda"),)}, "storage file '/no/disk'.*restore the missing file"),
        ({"disks": (Disk("/etc/passwd", "vda"),)}, "not in qcow2 format.*QEMU's log: .*/qemu/work.log"),
    ],
)
async def test_a_start_that_fails_leaves_nothing(
    hypervisor: Hypervisor, paths: Paths, spec: DomainSpec, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(HypervisorError, match=sentence):
        await hypervisor.create_paused(replace(spec, **change))  # type: ignore[arg-type]
    assert await hypervisor.domains() == []
    assert emulators(spec.uuid) == []
    assert not os.path.exists(spec.channels[0].path)
    assert not os.path.exists(f"{paths.home}/vmm/run/qemu/work.pid")


async def test_a_start_that_nobody_waits_for_leaves_nothing(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hypervisor.create_paused(spec), 0.01)
    assert await hypervisor.domains() == []
    assert emulators(spec.uuid) == []


async def test_a_name_is_taken_once(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    await hypervisor.create_paused(spec)
    with pytest.raises(HypervisorError, match=r"it is not this home.s: end it where it was started"):
        await hypervisor.create_paused(replace(spec, uuid=str(uuid4())))
    assert [domain.uuid for domain in await hypervisor.domains()] == [spec.uuid]


async def test_what_the_host_can_run(hypervisor: Hypervisor, paths: Paths) -> None:
    found = await hypervisor.capabilities()
    assert (found.accel, found.has_hvm, found.emulator) == ("tcg", True, find_emulator(""))
    assert hypervisor.is_shared or list(Path(paths.cache, "libvirt/capabilities").glob("*.xml"))


async def test_a_host_without_the_emulator_says_so(paths: Paths, spec: DomainSpec) -> None:
    settings = make_settings()
    settings.emulator = "/no/qemu"
    adapter = LibvirtHypervisor(paths, settings)
    await adapter.open()
    try:
        with pytest.raises(HypervisorError, match="the emulator /no/qemu"):
            await adapter.create_paused(spec)
    finally:
        await adapter.close()


async def test_a_closed_connection_says_so(paths: Paths) -> None:
    with pytest.raises(HypervisorError, match="closed: open it first"):
        await LibvirtHypervisor(paths, make_settings()).domains()


async def test_the_environment_is_as_before(hypervisor: Hypervisor) -> None:
    assert await hypervisor.domains() == []
    assert not [name for name in os.environ if name.startswith("LIBVIRT_")]


async def test_the_trial_guest_runs_when_emulated() -> None:
    assert await runs_guest(find_emulator(""), "tcg", 30) == ""


async def test_kvm_is_tried_once_and_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = AsyncMock(wraps=runs_guest)
    monkeypatch.setattr(accel, "runs_guest", trial)
    before = time.monotonic()
    first = await choose_accel("auto", find_emulator(""), str(tmp_path))
    assert time.monotonic() - before < 30, "4 s is what a trial may take, on a host that does little else"
    assert await choose_accel("auto", find_emulator(""), str(tmp_path)) == first
    assert trial.await_count <= 1
    assert first.accel == ("kvm" if "trial guest ran" in first.reason else "tcg")


async def test_statistics_of_all(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    assert await hypervisor.statistics() == []
    await hypervisor.create_paused(spec)
    await hypervisor.resume(spec.uuid)
    (stats,) = await hypervisor.statistics()
    assert (stats.uuid, stats.memory, stats.memory_max, stats.vcpus) == (spec.uuid, 32 << 10, 32 << 10, 1)
    assert stats.cpu_time > 0


async def test_an_emulator_that_hangs_is_not_waited_for(hypervisor: Hypervisor, spec: DomainSpec) -> None:
    await hypervisor.create_paused(spec)
    await hypervisor.resume(spec.uuid)
    (emulator,) = emulators(spec.uuid)
    os.kill(emulator, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            (first,), (second,) = await hypervisor.statistics(), await hypervisor.statistics()
            assert [domain.uuid for domain in await hypervisor.domains()] == [spec.uuid]
            assert await hypervisor.usage(spec.uuid)
    finally:
        os.kill(emulator, signal.SIGCONT)
    assert first.cpu_time == second.cpu_time, "it hung"
    assert first.measured_at < second.measured_at


async def test_an_emulator_that_hangs_is_told_of_and_obeys_when_it_goes_on(
    hypervisor: Hypervisor, spec: DomainSpec
) -> None:
    told: list[DomainState] = []
    hypervisor.listen(lambda _uuid, state: told.append(state))
    session = cast("LibvirtHypervisor", hypervisor)._session
    patience, complaint = session.answer_seconds, f"pausing {spec.uuid} failed: it did not answer within 1 s: see what"
    await hypervisor.create_paused(spec)
    (emulator,) = emulators(spec.uuid)

    async def pause_in_vain() -> None:
        with pytest.raises(HypervisorError, match=complaint):
            await hypervisor.pause(spec.uuid)

    try:
        async with asyncio.timeout(120):
            for crowd in (1, 6):  # the second time there are more than threads
                await hypervisor.resume(spec.uuid)
                os.kill(emulator, signal.SIGSTOP)
                session.answer_seconds = 1
                await asyncio.gather(*(pause_in_vain() for _ in range(crowd)))
                session.answer_seconds = patience
                assert [domain.uuid for domain in await hypervisor.domains()] == [spec.uuid]
                os.kill(emulator, signal.SIGCONT)
                await until(lambda: told[-1:] == [DomainState.PAUSED])
            os.kill(emulator, signal.SIGSTOP)
            await hypervisor.destroy(spec.uuid)
    finally:
        for pid in emulators(spec.uuid):
            os.kill(pid, signal.SIGCONT)
    assert not emulators(spec.uuid)


async def test_the_console_is_a_terminal_and_is_logged(
    hypervisor: Hypervisor, spec: DomainSpec, tmp_path: Path
) -> None:
    echoing = replace(spec, disks=(make_disk(tmp_path / "echo.raw", say(b"hello ") + ECHO),))
    await hypervisor.create_paused(echoing)
    await hypervisor.resume(spec.uuid)
    await wait_for(spec.console_log, "hello")
    terminal = os.open(await hypervisor.console(spec.uuid), os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(terminal, b"from the host")
        await wait_for(spec.console_log, "from the host")
        assert b"from the host" in await asyncio.to_thread(os.read, terminal, 100)
    finally:
        os.close(terminal)
    with pytest.raises(HypervisorError, match="has no console"):
        await hypervisor.console(str(uuid4()))


async def test_a_vm_that_somebody_else_starts_and_ends_is_told_of(
    hypervisor: Hypervisor, spec: DomainSpec, tmp_path: Path
) -> None:
    """As virsh does: on the same libvirt, past us."""
    with short_folder() as home:
        inside = build_inside(home, hypervisor)
        vm = add_vm(inside.registry, "StandaloneVM", "work", mode="hvm")
        told: list[str] = []
        inside.inventory.editor.listen(lambda event: told.append(event.name))
        off = replace(spec, uuid=vm.uuid, disks=(make_disk(tmp_path / "disk.raw", HALT),))
        connection = cast("LibvirtHypervisor", hypervisor)._session.opened()
        Path(off.console_log).parent.mkdir()
        host = HostCapabilities("tcg", has_hvm=True, emulator=find_emulator(""))
        domain = await asyncio.to_thread(connection.createXML, build_domain_xml(off, host), 0)
        await until(lambda: told == ["domain-start"])
        assert vm.power_state == "Running"
        await until(lambda: vm.get("xid") > 0 and vm.uuid in inside.agents.running)
        await asyncio.to_thread(domain.suspend)
        await until(lambda: vm.power_state == "Paused")
        await asyncio.to_thread(domain.resume)
        await until(lambda: vm.power_state == "Running")
        await asyncio.to_thread(domain.destroy)
        await until(lambda: told[-1] == "domain-shutdown")
        assert told == ["domain-start", "domain-paused", "domain-unpaused", "domain-stopped", "domain-shutdown"]
        assert (vm.power_state, vm.get("xid"), inside.agents.running) == ("Halted", -1, set())
