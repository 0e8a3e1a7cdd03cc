"""What the model may know of running VMs. Without a hypervisor all are halted, and nothing is an error (B4, B7)."""

from dataclasses import dataclass
from typing import Protocol


class Runtime(Protocol):
    """The present of VMs, by UUID."""

    def power_state(self, uuid: str) -> str:
        """Return the power state in the Admin API's words; Halted for a VM that is not known."""

    def active_states(self) -> dict[str, str]:
        """Return the power states of all VMs that are not halted, by UUID."""

    def xid(self, uuid: str) -> int:
        """Return the hypervisor's number of the running VM; -1 when it does not run."""

    def stubdom_xid(self, uuid: str) -> int:
        """Return the number of the running VM's stub domain; -1 when there is none."""


class NothingRuns:
    """The runtime of a registry that nobody connected to anything."""

    def power_state(self, uuid: str) -> str:
        """Return Halted."""
        del uuid
        return "Halted"

    def active_states(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    def xid(self, uuid: str) -> int:
        """Return -1."""
        del uuid
        return -1

    def stubdom_xid(self, uuid: str) -> int:
        """Return -1."""
        del uuid
        return -1


@dataclass(frozen=True)
class HostFacts:
    """What the host has: memory in MiB and processors. Zero: not known."""

    memory: int = 0
    processors: int = 0
