"""qvm-device, qvm-block, qvm-pci, qvm-usb: show the devices of VMs, and give them to others."""

from __future__ import annotations

from crannog.cli.actions import MANY, Actions, refuse_odd_options
from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.qvm_device_text import ANY, Device, print_assignment, read_device, read_options
from crannog.cli.request import refuse_odd_name
from crannog.cli.server_text import fetch
from crannog.cli.tool import end, escape, run, say
from crannog.errors import DeviceNotAssignedError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

_EXAMPLES = (
    "  {0} list\n  {0} info {1}\n  {0} assign {2}work {1}\n  {0} unassign work {1}\n  {0} detach work"
)  # fmt: skip


def _declare(program: str, devclass: str = "") -> Command:
    """Return the command line of a tool for all classes of devices, or for one."""
    example = {"pci": "dom0:00_1f.3", "usb": "sys-usb:2-1"}.get(devclass, "sys-usb:sda")
    operands = [] if devclass else [Operand("devclass", "CLASS", "class of devices: block, pci, usb, mic, ...", "?")]
    options = [] if devclass else [Option("--list-device-classes", help="list the classes of devices that there are")]
    name = program if devclass else f"{program} block"
    return Command(
        program,
        f"Show the {devclass + ' ' if devclass else ''}devices of VMs and of this host, and give them to VMs.",
        *operands,
        Operand(
            "action",
            "ACTION",
            "list (also ls, l, available; the default) [VM...]; info (i) DEVICE; assign (s) VM DEVICE, from the next "
            "start on; unassign (u) VM [DEVICE]; attach (at, a) VM DEVICE, now; detach (dt, d) VM [DEVICE]",
            "?",
        ),
        Operand("words", "ARGUMENT", "what the action takes; DEVICE is BACKEND:PORT or BACKEND:PORT:DEVICEID", "*"),
        *options,
        Option("--required", "-r", help="assign: the VM does not start without it (pci, block)"),
        Option("--auto", "--auto-attach", help="assign: attach it when it is there (the default, except for pci)"),
        Option("--ask", "--ask-to-attach", help="assign: ask each time"),
        Option("--port", "--only-port", help="assign, unassign: whatever is at the port"),
        Option("--device", "--only-device", help="assign, unassign: the device at whichever port it is"),
        Option("--persistent", "-p", help="attach: assign it too; assign, unassign: -p is short for --port"),
        Option("--option", "-o", metavar="KEY=VALUE", is_repeated=True, help="option of the device; may be repeated"),
        Option("--ro", help="the same as --option read-only=yes"),
        Option("--assignments", "-s", help="accepted for those who are used to it: assignments are always listed"),
        OFFLINE,
        *COMMON,
        examples=_EXAMPLES.format(name, example, "" if devclass == "pci" else "--ask "),
    )


COMMAND = _declare("qvm-device")
BLOCK, PCI, USB = (_declare(f"qvm-{devclass}", devclass) for devclass in ("block", "pci", "usb"))
ACTIONS = Actions(
    {
        "list": (0, MANY, "VMs only"),
        "info": (1, 1, "a device"),
        "assign": (2, 2, "a VM and a device"),
        "unassign": (1, 2, "a VM and perhaps a device"),
        "attach": (2, 2, "a VM and a device"),
        "detach": (1, 2, "a VM and perhaps a device"),
    },
    {
        "ls": "list", "l": "list", "available": "list", "i": "info", "s": "assign", "u": "unassign", "at": "attach",
        "a": "attach", "dt": "detach", "d": "detach",
    },
)  # fmt: skip
_USERS = {
    "required": ("assign",), "auto": ("assign",), "ask": ("assign",), "port": ("assign", "unassign"),
    "device": ("assign", "unassign"), "persistent": ("attach", "assign", "unassign"), "option": ("assign", "attach"),
    "ro": ("assign", "attach"), "assignments": ("list",),
}  # fmt: skip
REQUIRED, AUTO, ASK, MANUAL = "required", "auto-attach", "ask-to-attach", "manual"
MAY_BE_REQUIRED, MAY_BE_AUTO = ("pci", "block"), ("usb", "block", "mic", "pci")


def act(command: Command, devclass: str, options: Values) -> None:
    """Do what the command line of one of the tools says."""
    if not devclass and options.list_device_classes:
        for name in fetch(open_client(command.program, options), "admin.deviceclass.List").splitlines():
            say(escape(name))
        return
    devclass = devclass or _find_class(options)
    action = ACTIONS.find(options.action or "list", options.words)
    refuse_odd_options(action, options, _USERS)
    if action == "list":
        from crannog.cli.qvm_device_list import list_devices

        list_devices(open_client(command.program, options), devclass, options.words)
    elif action == "info":
        from crannog.cli.qvm_device_list import show_device

        device, _ = read_device(devclass, options.words[0])
        show_device(open_client(command.program, options), device)
    else:
        _change(command, action, devclass, options)


def _find_class(options: Values) -> str:
    if options.devclass is None:
        raise UsageError("name the class of devices, as in 'qvm-device block'; --list-device-classes lists them")
    refuse_odd_name("class of devices", options.devclass)
    return str(options.devclass)


def _change(command: Command, action: str, devclass: str, options: Values) -> None:
    vm, *texts = options.words
    choice = find_choice(options) if action in ("assign", "unassign") else ""
    pairs = read_options(options.option) | ({"read-only": "yes"} if options.ro else {})
    wanted, has_id = read_device(devclass, texts[0]) if texts else (None, False)
    mode = find_mode(devclass, options) if action == "assign" else ""
    devices = Devices(open_client(command.program, options), devclass, vm)
    if wanted is None:
        devices.release_all(action)
    elif action == "assign":
        devices.assign(devices.identify(wanted, choice, has_id=has_id), mode, pairs)
    elif action == "unassign":
        devices.unassign(wanted, choice, has_id=has_id)
    elif action == "detach":
        devices.call("Detach", wanted)
    else:
        devices.attach(wanted, pairs, is_assigned=options.persistent)


def find_choice(options: Values) -> str:
    """Return `port` or `device` for what alone counts of the two, else nothing."""
    if options.device and (options.port or options.persistent):
        raise UsageError("--port and --device exclude each other")
    return "device" if options.device else "port" if options.port or options.persistent else ""


def find_mode(devclass: str, options: Values) -> str:
    """Return the mode of an assignment; raises UsageError for one that the class does not have."""
    flags = {REQUIRED: options.required, AUTO: options.auto, ASK: options.ask}
    modes = [mode for mode, is_given in flags.items() if is_given]
    if len(modes) > 1:
        raise UsageError("say only one of --required, --auto and --ask")
    mode = modes[0] if modes else REQUIRED if devclass == "pci" else AUTO
    if devclass == "pci" and mode != REQUIRED:
        raise UsageError("PCI devices cannot be attached to a running VM, so they can only be required ones")
    if mode == REQUIRED and devclass not in MAY_BE_REQUIRED:
        raise UsageError(f"{devclass} devices cannot be required ones, only {' and '.join(MAY_BE_REQUIRED)} devices")
    if mode == AUTO and devclass not in MAY_BE_AUTO:
        raise UsageError(f"{devclass} devices cannot be attached by themselves; choose --ask")
    return mode


class Devices:
    """What one VM has of the devices of one class."""

    def __init__(self, client: Caller, devclass: str, vm: str) -> None:
        self._client = client
        self._devclass = devclass
        self.vm = vm

    def call(self, method: str, device: Device, payload: str = "") -> None:
        """Call one of the methods that change what the VM has."""
        fetch(self._client, f"admin.vm.device.{self._devclass}.{method}", self.vm, device.argument(), payload)

    def identify(self, wanted: Device, choice: str, *, has_id: bool) -> Device:
        """Return what is to be assigned: for a port without an id, the device that is there now."""
        if choice == "port":
            return wanted.with_id(ANY)
        if not has_id:
            from crannog.cli.qvm_device_list import find_present

            wanted = find_present(self._client, wanted)[0]
        return wanted.at_any_port() if choice == "device" else wanted

    def assign(self, device: Device, mode: str, options: dict[str, str]) -> None:
        """Let the VM have a device by itself."""
        self.call("Assign", device, print_assignment(device, mode, options))

    def unassign(self, wanted: Device, choice: str, *, has_id: bool) -> None:
        """Take back what is assigned; without an id, whatever is assigned of that port."""
        if choice == "port" or (has_id and choice != "device"):
            self.call("Unassign", wanted.with_id(ANY) if choice == "port" else wanted)
        elif choice == "device":
            self.call("Unassign", self.identify(wanted, choice, has_id=has_id))
        else:
            self._unassign_port(wanted)

    def _unassign_port(self, wanted: Device) -> None:
        from crannog.cli.qvm_device_list import fetch_devices

        assigned = fetch_devices(self._client, self._devclass, "Assigned", self.vm)
        found = [device for device, _ in assigned if wanted.covers(device)]
        if not found:
            raise DeviceNotAssignedError(
                f"{wanted} is not assigned to {self.vm}; 'qvm-device {self._devclass} list {self.vm}' lists what is"
            )
        for device in found:
            self.call("Unassign", device)

    def release_all(self, action: str) -> None:
        """Detach, or unassign, all that the VM has of the class."""
        from crannog.cli.qvm_device_list import fetch_devices

        what, method = ("Attached", "Detach") if action == "detach" else ("Assigned", "Unassign")
        for device, _ in fetch_devices(self._client, self._devclass, what, self.vm):
            self.call(method, device)

    def attach(self, wanted: Device, options: dict[str, str], *, is_assigned: bool) -> None:
        """Give the VM a device now; with `is_assigned`, at each start too, and now only if the VM runs."""
        if is_assigned:
            mode = REQUIRED if self._devclass in MAY_BE_REQUIRED else AUTO
            self.assign(self.identify(wanted, "", has_id=wanted.device_id != ANY), mode, options)
            if self._devclass == "pci" or self._is_halted():
                return
        self.call("Attach", wanted, print_assignment(wanted, MANUAL, options))

    def _is_halted(self) -> bool:
        return "power_state=Halted" in fetch(self._client, "admin.vm.CurrentState", self.vm).split()


def main() -> None:
    """Run qvm-device."""
    end(run(COMMAND, lambda options: act(COMMAND, "", options)))


def main_block() -> None:
    """Run qvm-block."""
    end(run(BLOCK, lambda options: act(BLOCK, "block", options)))


def main_pci() -> None:
    """Run qvm-pci."""
    end(run(PCI, lambda options: act(PCI, "pci", options)))


def main_usb() -> None:
    """Run qvm-usb."""
    end(run(USB, lambda options: act(USB, "usb", options)))
