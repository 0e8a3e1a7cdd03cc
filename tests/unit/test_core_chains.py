"""Which netvms start before a VM, and in which order VMs start with the host."""

import itertools

import pytest

from crannog.core.chains import autostart_order, netvms_to_start
from crannog.core.plan import StartNetvm
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest, plan_start
from crannog.core.vms import LocalVM
from tests.fakes import add_vm, halted_facts, new_registry


def chain(*names: str) -> tuple[Registry, list[LocalVM]]:
    """Return VMs each of which gets its network from the next."""
    registry = new_registry()
    vms = [add_vm(registry, "StandaloneVM", name) for name in names]
    for vm, netvm in itertools.pairwise(vms):
        netvm.set("provides_network", True)
        vm.set("netvm", netvm)
    return registry, vms


def names(vms: list[LocalVM]) -> list[str]:
    return [vm.name for vm in vms]


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        ((), ["net", "fw", "vpn"]),
        (("net",), ["fw", "vpn"]),
        (("fw",), ["vpn"]),
        (("fw", "net"), ["vpn"]),
        (("vpn",), []),
        (("work",), ["net", "fw", "vpn"]),
    ],
)
def test_who_starts_before_a_vm(serving: tuple[str, ...], expected: list[str]) -> None:
    """One that runs leads to the network as it is: what lies beyond it may have been shut down on purpose."""
    _, vms = chain("work", "vpn", "fw", "net")
    running = frozenset(vm.uuid for vm in vms if vm.name in serving)
    assert names(netvms_to_start(vms[0], running)) == expected


def test_a_vm_without_a_network_needs_nobody() -> None:
    assert netvms_to_start(add_vm(new_registry(), "StandaloneVM", "alone"), frozenset()) == []


def test_the_default_netvm_counts() -> None:
    registry, (net,) = chain("net")
    net.set("provides_network", True)
    registry.set("default_netvm", net)
    work = add_vm(registry, "StandaloneVM", "work")
    assert names(netvms_to_start(work, frozenset())) == ["net"]
    assert netvms_to_start(net, frozenset()) == []


@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_a_loop_that_should_not_be_there_ends(back_to: int) -> None:
    _, vms = chain("work", "fw", "net")
    vms[0].values["provides_network"] = True
    vms[2].values["netvm"] = vms[back_to]
    assert set(names(netvms_to_start(vms[0], frozenset()))) == {"fw", "net"}


def test_the_plan_starts_them_first() -> None:
    """The order of a start: netvm, volumes, memory, domain."""
    _, vms = chain("work", "fw", "net")
    plan = plan_start(vms[0], StartRequest(), halted_facts())
    first = [step for step in plan if isinstance(step, StartNetvm)]
    assert list(plan[:2]) == first
    assert [(step.name, step.client) for step in first] == [("net", vms[0].uuid), ("fw", vms[0].uuid)]
    assert first[0].describe() == "start net before it, which leads to its network"
    rest = plan_start(vms[0], StartRequest(), halted_facts(serving=frozenset({vms[1].uuid})))
    assert rest == plan[2:]


def test_who_starts_with_the_host() -> None:
    registry, vms = chain("work", "fw", "net")
    alone, other = (add_vm(registry, "StandaloneVM", name) for name in ("alone", "other"))
    for vm in (*vms, alone):
        vm.set("autostart", True)
    assert names(autostart_order([*registry.local_vms()][::-1])) == ["net", "alone", "fw", "work"]
    assert other not in autostart_order(registry.local_vms())
    vms[1].set("autostart", False)
    assert names(autostart_order(registry.local_vms())) == ["net", "alone", "work"]
