"""What Crannog asks of the host about its own devices."""

from typing import Protocol

from crannog.core.device_text import Device


class HostDevices(Protocol):
    """The devices that dom0 could give to VMs."""

    def available(self, devclass: str) -> list[Device]:
        """Return the devices of a class as they are now, in no particular order; what cannot be read is not there."""
