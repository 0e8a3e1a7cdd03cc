"""In which order VMs start that get their network from each other."""

from collections.abc import Iterable
from itertools import takewhile

from crannog.core.vms import LocalVM


def netvms_to_start(vm: LocalVM, serving: frozenset[str]) -> list[LocalVM]:
    """Return the netvms that must start before `vm`, the one that is farthest from it first.

    `serving` are the UUIDs of the VMs that run and go on running. The walk ends at the first of them: what lies beyond
    is its affair. Networks have no loops (core.rules); a file that says otherwise must not keep us busy for ever.
    """
    halted = takewhile(lambda netvm: netvm.uuid not in serving, _upstream(vm))
    return list(halted)[::-1]


def _upstream(vm: LocalVM) -> list[LocalVM]:
    """Return the netvm of a VM, that one's netvm, and so on, each once."""
    chain: list[LocalVM] = []
    current = vm.netvm
    while current is not None and current is not vm and current not in chain:
        chain.append(current)
        current = current.netvm
    return chain


def autostart_order(vms: Iterable[LocalVM]) -> list[LocalVM]:
    """Return the VMs that start with the host: whoever is nearer to the outside first, then by their numbers."""
    wanted = [vm for vm in vms if vm.get("autostart")]
    return sorted(wanted, key=lambda vm: (len(_upstream(vm)), vm.qid))
