"""Devices that VMs are assigned: checked, changed, saved, and then told (Admin API, section 7)."""

from crannog.core import device_events
from crannog.core.device_names import DEVCLASSES, DeviceName, Mode, parse_codes, split_codes
from crannog.core.device_text import Device
from crannog.core.devices import Assignment
from crannog.core.vms import LocalVM, QubeBase
from crannog.editing.editor import Editor
from crannog.errors import DeviceAssignedError, DeviceNotAssignedError, ValueRefusedError
from crannog.ports.hostdevices import HostDevices

_DENIED = "devices_denied"


class Devices:
    """The devices of one registry's VMs, and the host's."""

    def __init__(self, editor: Editor, host: HostDevices) -> None:
        self._editor = editor
        self._host = host

    def available(self, vm: QubeBase, devclass: str) -> list[Device]:
        """Return the devices that a VM could give to others. Of VMs other than dom0 nothing is known yet."""
        return self._host.available(devclass) if vm is self._editor.registry.dom0 else []

    @staticmethod
    def assigned(vm: QubeBase, devclass: str) -> list[Assignment]:
        """Return what a VM is assigned of a class."""
        return [assignment for assignment in vm.devices if assignment.devclass == devclass]

    def assign(self, vm: QubeBase, wanted: Assignment) -> None:
        """Assign a device to a VM.

        Raises ValueRefusedError, VMNotFoundError for a backend that does not exist, or DeviceAssignedError.
        """
        self._check_ends(vm, self._editor.registry.find_vm(wanted.backend))
        check_mode(wanted.devclass, wanted.mode)
        if self._find(vm, wanted.devclass, wanted.device):
            raise DeviceAssignedError(
                f"{wanted.devclass} device {wanted.device} is assigned to {vm.name} already; "
                f"its mode can be changed, other options need it to be unassigned first"
            )
        with self._editor.change(vm) as told:
            vm.devices = (*vm.devices, wanted)
            told.extend(device_events.assigned(vm.name, wanted))

    @staticmethod
    def _check_ends(vm: QubeBase, backend: QubeBase) -> None:
        if not isinstance(vm, LocalVM):
            raise ValueRefusedError(
                f"{vm.name} is of class {vm.klass} and is not given devices; only VMs that run on this host are"
            )
        if backend is vm:
            raise ValueRefusedError(f"the device is {vm.name}'s own; it can be assigned to other VMs only")

    def unassign(self, vm: QubeBase, devclass: str, device: DeviceName) -> None:
        """Take an assignment away; raises DeviceNotAssignedError."""
        found = self._require(vm, devclass, device)
        with self._editor.change(vm) as told:
            vm.devices = tuple(assignment for assignment in vm.devices if assignment is not found)
            told.extend(device_events.unassigned(vm.name, found))

    def set_mode(self, vm: QubeBase, devclass: str, device: DeviceName, mode: Mode) -> None:
        """Give an assignment another mode; raises ValueRefusedError or DeviceNotAssignedError."""
        check_mode(devclass, mode)
        found = self._require(vm, devclass, device)
        if found.mode is mode:
            return
        changed = found.with_mode(mode)
        with self._editor.change(vm) as told:
            vm.devices = tuple(changed if assignment is found else assignment for assignment in vm.devices)
            told.extend(device_events.mode_changed(vm.name, changed))

    def _require(self, vm: QubeBase, devclass: str, device: DeviceName) -> Assignment:
        found = self._find(vm, devclass, device)
        if found is None:
            raise DeviceNotAssignedError(f"{devclass} device {device} is not assigned to {vm.name}")
        return found

    def _find(self, vm: QubeBase, devclass: str, device: DeviceName) -> Assignment | None:
        """Return the assignment of a device. Compared is what an argument can say, as that is how devices are named."""
        return next((found for found in self.assigned(vm, devclass) if found.device.qarg == device.qarg), None)

    @staticmethod
    def denied(vm: QubeBase) -> list[str]:
        """Return the codes of the interfaces that a VM never gets; raises PropertyNotFoundError."""
        return list(dict.fromkeys(split_codes(str(vm.get(_DENIED)))))

    def deny(self, vm: QubeBase, untrusted_codes: str) -> None:
        """Add to the interfaces that a VM never gets; raises ProtocolError or ValueRefusedError."""
        known = self.denied(vm)
        self._set_denied(vm, [*known, *(code for code in parse_codes(untrusted_codes) if code not in known)])

    def allow(self, vm: QubeBase, untrusted_codes: str) -> None:
        """Take from the interfaces that a VM never gets, `all` of them perhaps; others than those are no error."""
        known = self.denied(vm)
        gone = known if untrusted_codes == "all" else parse_codes(untrusted_codes)
        self._set_denied(vm, [code for code in known if code not in gone])

    def _set_denied(self, vm: QubeBase, codes: list[str]) -> None:
        if codes != self.denied(vm):
            self._editor.set_property(vm, _DENIED, "".join(codes))


def check_mode(devclass: str, mode: Mode) -> None:
    """Raise ValueRefusedError unless assignments of the class can have the mode."""
    if mode not in DEVCLASSES[devclass]:
        raise ValueRefusedError(
            f"{devclass} devices cannot be assigned in mode {mode}; use {' or '.join(DEVCLASSES[devclass])}"
        )
