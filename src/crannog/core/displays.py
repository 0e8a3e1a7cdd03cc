"""What a VM's settings say of how it is shown, and what is said of its displays between the daemon and their port."""

from dataclasses import dataclass
from enum import Enum, auto

from crannog.core.handover import GuiMode, ScreenUse, Wishes
from crannog.core.vms import LocalVM
from crannog.errors import ValueRefusedError

GUI = "gui"
"""Feature: the guest has a GUI agent; its tools announce it (design.md, B13)."""
GUI_EMULATED = "gui-emulated"
"""Feature: empty means that the emulated screen opens only when somebody asks for it (Admin API, "gui-emulated")."""
SEAMLESS = "seamless-gui-mode"
"""Feature: empty means that the agent display is one window with the whole desktop."""
VIDEO_MODEL = "video-model"
"""Feature: the card that the device model shows a guest (libvirt, "Video devices"); `none`: it has none."""


VIDEO_MODELS = ("vga", "cirrus", "bochs", "virtio", "qxl", "vmvga")
"""What QEMU can show a PC of what libvirt has names for."""
NO_VIDEO = "none"


class DisplayKind(Enum):
    """The two displays that a VM can have."""

    SCREEN = auto()
    """The device model's."""
    AGENT = auto()
    """What the guest's GUI agent forwards."""


class DisplayNews(Enum):
    """What is heard of a display."""

    DRAWN = auto()
    """The first picture is on the desktop."""
    CLOSED = auto()
    """The user closed its window."""
    CONNECTED = auto()
    """It shows the guest."""
    LOST = auto()
    """It shows the guest no more, and tries to."""
    MODE_SENT = auto()
    MODE_FAILED = auto()
    ENDED = auto()
    """Its process has ended."""


@dataclass(frozen=True)
class Shown:
    """What a display must know of a VM: `colour` of its label as `#rrggbb`, `state` empty for one that just runs."""

    uuid: str
    name: str
    colour: str
    state: str = ""


_STATES = {
    "Transient": "starting",
    "Paused": "paused",
    "Suspended": "suspended",
    "Halting": "shutting down",
    "Dying": "shutting down",
    "Crashed": "crashed",
}
"""What is said of a VM that does not just run, by its power state in the Admin API's words."""


def describe_shown(vm: LocalVM) -> Shown:
    """Return what the displays of a VM must know of it, as it is now."""
    colour = "#" + vm.get("label").color.removeprefix("0x")
    words = ["debug"] if vm.get("debug") else []
    words += [_STATES[vm.power_state]] if vm.power_state in _STATES else []
    return Shown(vm.uuid, vm.name, colour, ", ".join(words))


def has_screen(vm: LocalVM) -> bool:
    """Tell whether the device model has a screen that shows something of this VM."""
    return vm.mode.has_display and vm.feature(VIDEO_MODEL) != NO_VIDEO


def video_model(vm: LocalVM) -> tuple[str, str]:
    """Return the card that the guest sees, and what is wrong with what the settings say, if anything is."""
    wanted = vm.feature(VIDEO_MODEL) or VIDEO_MODELS[0]
    if wanted in (*VIDEO_MODELS, NO_VIDEO):
        return wanted, ""
    return VIDEO_MODELS[0], f"feature {VIDEO_MODEL} is {wanted[:40]!r}, which is none of {', '.join(VIDEO_MODELS)}"


def wishes_of(vm: LocalVM, *, has_agent: bool) -> Wishes:
    """Return which displays a VM is to have. `has_agent`: its agent answers now, so that its GUI agent can be called.

    That a GUI agent is used follows from feature `gui`, directly (design.md, B10).
    """
    return Wishes(_screen_use(vm), uses_agent=has_agent and is_shown_here(vm) and has_gui_agent(vm), mode=_mode_of(vm))


def has_gui_agent(vm: LocalVM) -> bool:
    """Tell whether the VM, or its template, has announced a GUI agent."""
    return vm.feature(GUI) == "1"


def is_shown_here(vm: LocalVM) -> bool:
    """Tell whether this host shows the VM's displays: its `guivm` is dom0."""
    shower = vm.get("guivm")
    return shower is not None and shower.klass == "AdminVM"


def describe_guivm(vm: LocalVM) -> str:
    """Return why a VM is not shown by this host whose `guivm` is another VM or none, with the next step."""
    shower = vm.get("guivm")
    reason = "none" if shower is None else f"{shower.name}, and of all VMs dom0 alone can show others yet"
    return f"its guivm is {reason}; 'qvm-prefs {vm.name} guivm dom0' has it shown here"


def check_seamless(vm: LocalVM, feature: str, value: str) -> None:
    """Refuse seamless mode for a VM without a GUI agent (design.md, B10). Raises ValueRefusedError."""
    if feature == SEAMLESS and value and not has_gui_agent(vm):
        raise ValueRefusedError(
            f"{vm.name} cannot be shown in seamless mode: it has no GUI agent; install the guest tools in it, which "
            f"announce themselves"
        )


def _screen_use(vm: LocalVM) -> ScreenUse:
    if not is_shown_here(vm):
        return ScreenUse.NEVER
    if vm.get("debug"):
        return ScreenUse.ALWAYS
    return ScreenUse.NEVER if vm.feature(GUI_EMULATED) == "" else ScreenUse.UNTIL_AGENT


def _mode_of(vm: LocalVM) -> GuiMode:
    return GuiMode.FULLSCREEN if vm.feature(SEAMLESS) in ("", "0") else GuiMode.SEAMLESS
