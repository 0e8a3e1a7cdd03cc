"""How much memory VMs hold, and who is let in."""

import pytest

from crannog.core.memory import (
    HOST_MIB,
    PROCESS_MIB,
    SCREEN_MIB,
    TRANSLATION_MIB,
    Claim,
    Need,
    check_room,
    count_free,
    need_of,
    would_fit,
)
from crannog.core.plan import ReserveMemory
from crannog.core.startup import StartRequest, plan_start
from crannog.errors import MemoryRefusedError, StartError, from_wire
from tests.fakes import HostCapabilities, add_vm, halted_facts, new_registry

KVM = HostCapabilities("kvm", has_hvm=True, emulator="/usr/bin/qemu-system-x86_64")
TCG = HostCapabilities("tcg", has_hvm=True, emulator="/usr/bin/qemu-system-x86_64")
XEN = HostCapabilities("xen", has_hvm=True, emulator="", kind="xen")


@pytest.mark.parametrize(
    ("mode", "host", "memory", "overhead"),
    [
        ("pvh", KVM, 400, PROCESS_MIB + 1),
        ("pvh", KVM, 4096, PROCESS_MIB + 8),
        ("hvm", KVM, 512, PROCESS_MIB + 1 + SCREEN_MIB),
        ("pvh", TCG, 512, PROCESS_MIB + 1 + TRANSLATION_MIB),
        ("hvm", TCG, 513, PROCESS_MIB + 2 + SCREEN_MIB + TRANSLATION_MIB),
    ],
)
def test_what_a_vm_needs(mode: str, host: HostCapabilities, memory: int, overhead: int) -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone", mode=mode)
    vm.set("memory", memory)
    assert need_of(vm, host) == Need(memory, overhead)
    assert need_of(vm, host).total == memory + overhead


def test_a_guest_that_may_grow_is_counted_as_grown() -> None:
    """On QEMU a guest can take back what it gave, without asking anybody."""
    vm = add_vm(new_registry(), "StandaloneVM", "alone", mode="pvh")
    vm.set("maxmem", 1000)
    assert need_of(vm, KVM).guest == 1000
    vm.features["service.meminfo-writer"] = ""
    assert need_of(vm, KVM).guest == 400


@pytest.mark.parametrize(("total", "resident", "outstanding"), [(500, 0, 500), (500, 120, 380), (500, 900, 0)])
def test_what_is_in_memory_is_outstanding_no_more(total: int, resident: int, outstanding: int) -> None:
    """One that uses more than it was thought to need does not make room for others."""
    assert Claim("a", total, resident).outstanding == outstanding


def test_idle_guests_do_not_over_commit_the_host() -> None:
    """Ten guests that have touched nothing: MemAvailable is as if they were not there."""
    idle = [Claim(f"idle{number}", 460, 50) for number in range(10)]
    assert count_free(8000, []) == 8000 - HOST_MIB
    assert count_free(8000, idle) == 8000 - HOST_MIB - 4100
    assert count_free(4000, idle) == 0


def test_a_guest_that_fills_up_changes_nothing_for_others() -> None:
    """What it touches goes from what is outstanding to what is not available."""
    free = {count_free(5000 - touched, [Claim("a", 2000, touched)]) for touched in (0, 1, 999, 2000)}
    assert free == {5000 - HOST_MIB - 2000}


@pytest.mark.parametrize(("available", "is_refused"), [(HOST_MIB + 460, False), (HOST_MIB + 459, True)])
def test_the_last_mib_counts(available: int, *, is_refused: bool) -> None:
    if not is_refused:
        check_room("work", Need(400, 60), available, [])
        return
    with pytest.raises(MemoryRefusedError):
        check_room("work", Need(400, 60), available, [])


@pytest.mark.parametrize(
    ("spare", "need", "fits"),
    [
        ((), 100, True),
        ((), 101, False),
        (("a",), 400, True),  # its 300, of which 100 are in the host's memory and 200 are still to come
        (("a",), 401, False),
        (("a", "b"), 800, True),
        (("a", "b"), 801, False),
        (("c",), 101, False),
    ],
)
def test_what_others_would_give_back(spare: tuple[str, ...], need: int, *, fits: bool) -> None:
    claims = {"a": Claim("disp1", 300, 100), "b": Claim("disp2", 400, 400)}
    assert would_fit(Need(need, 0), HOST_MIB + 200 + 100, claims, spare) is fits


def test_a_refusal_says_who_holds_what() -> None:
    claims = [Claim("desk", 860, 100), Claim("big", 2060, 1000)]
    with pytest.raises(MemoryRefusedError) as caught:
        check_room("work", Need(4096, 68), HOST_MIB + 3020, claims)
    assert str(caught.value) == (
        "work needs 4096 MiB and 68 MiB for QEMU, but 1200 MiB are free: big holds 2060 MiB, desk holds 860 MiB; "
        "shut one down, or give work less with 'qvm-prefs work memory'"
    )


def test_a_refusal_with_nobody_to_shut_down() -> None:
    with pytest.raises(MemoryRefusedError, match="0 MiB are free: no VM holds any; end other programs, or give work"):
        check_room("work", Need(400, 60), 100, [])


def test_a_refusal_names_the_largest_and_counts_the_others() -> None:
    claims = [Claim(f"vm{number}", 100 * number) for number in range(1, 8)]
    with pytest.raises(MemoryRefusedError, match=r"vm7 holds 700 MiB, .*, vm3 holds 300 MiB and 2 more hold 300 MiB;"):
        check_room("work", Need(400, 60), 1000, claims)


def test_the_error_is_a_failed_start_that_other_clients_know() -> None:
    assert issubclass(MemoryRefusedError, StartError)
    assert MemoryRefusedError.exit_code == 6
    assert type(from_wire("QubesMemoryError", "no room")) is MemoryRefusedError


def test_memory_is_reserved_after_the_volumes_and_before_the_domain() -> None:
    vm = add_vm(new_registry(), "StandaloneVM", "alone", mode="hvm")
    plan = plan_start(vm, StartRequest(), halted_facts(capabilities=KVM))
    names = [type(step).__name__ for step in plan]
    assert names == [
        "PrepareVolume",
        "PrepareVolume",
        "ReserveMemory",
        "StartRpc",
        "OpenDisplays",
        "CreatePaused",
        "Resume",
    ]
    assert plan[2] == ReserveMemory(vm.uuid, "alone", 400, PROCESS_MIB + 1 + SCREEN_MIB)
    assert plan[2].describe() == "reserve 400 MiB of memory, and 93 MiB for QEMU"


def test_on_xen_the_hypervisor_counts() -> None:
    """Dom0 sees its own memory alone: what guests get is not in it."""
    vm = add_vm(new_registry(), "StandaloneVM", "alone")
    plan = plan_start(vm, StartRequest(), halted_facts(capabilities=XEN))
    assert not [step for step in plan if isinstance(step, ReserveMemory)]
