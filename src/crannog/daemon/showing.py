"""What this host can show of which VM, and the sentences that say why it does not."""

import logging

from crannog.core.displays import (
    DisplayKind,
    describe_guivm,
    has_gui_agent,
    has_screen,
    is_shown_here,
    wishes_of,
)
from crannog.core.handover import Wishes
from crannog.core.vms import LocalVM
from crannog.ports.display import Displays

log = logging.getLogger(__name__)

SCREEN, AGENT = DisplayKind.SCREEN, DisplayKind.AGENT


class Showing:
    """What keeps this host from showing VMs is looked up by `look`. What is open stays open, whatever is missing."""

    def __init__(self, displays: Displays) -> None:
        self._displays = displays
        self._problems: dict[DisplayKind, str] = {}
        self._logged: set[str] = set()
        self.open: set[tuple[str, DisplayKind]] = set()
        """Displays whose process is there, by UUID."""
        self.unmet: set[str] = set()
        """UUIDs of VMs that would be shown, if this host could."""

    def look(self) -> None:
        """Look up what this host can show now."""
        self._problems = {kind: self._displays.describe_problem(kind) for kind in DisplayKind}
        self._logged &= set(self._problems.values())

    def choose(self, vm: LocalVM, *, has_agent: bool) -> tuple[Wishes, bool]:
        """Return which displays a VM is to have, and whether its screen can be shown."""
        kinds = self._kinds(vm)
        blocked = {kind for kind in kinds if self._problems[kind] and (vm.uuid, kind) not in self.open}
        if blocked and is_shown_here(vm):
            self.unmet.add(vm.uuid)
            self._log(vm, blocked)
        else:
            self.unmet.discard(vm.uuid)
        return wishes_of(vm, has_agent=has_agent and AGENT not in blocked), SCREEN in kinds - blocked

    def explain(self, vm: LocalVM) -> str:
        """Return why something of a VM is not shown, for a person to read; empty when all is."""
        return describe_guivm(vm) if self._kinds(vm) and not is_shown_here(vm) else "; ".join(self._list_problems(vm))

    def refuse(self, vm: LocalVM) -> str:
        """Return why nothing at all of a VM can be shown; empty when something can."""
        kinds = self._kinds(vm)
        if not kinds:
            return "it has neither an emulated screen nor a GUI agent; install the graphical guest tools in it"
        if not is_shown_here(vm):
            return describe_guivm(vm)
        return "; ".join(self._list_problems(vm)) if all(self._problems[kind] for kind in kinds) else ""

    def forget(self, uuid: str) -> None:
        """Forget a VM that has ended."""
        self.unmet.discard(uuid)

    def _list_problems(self, vm: LocalVM) -> list[str]:
        """Return what keeps displays of a VM from being shown, each sentence once."""
        found = [self._problems[kind] for kind in DisplayKind if kind in self._kinds(vm)]
        return list(dict.fromkeys(filter(None, found)))

    @staticmethod
    def _kinds(vm: LocalVM) -> set[DisplayKind]:
        """Return which displays a VM can have."""
        return {kind for kind, is_had in ((SCREEN, has_screen(vm)), (AGENT, has_gui_agent(vm))) if is_had}

    def _log(self, vm: LocalVM, kinds: set[DisplayKind]) -> None:
        """Log what is missing when it keeps a VM from being shown for the first time."""
        for problem in sorted({self._problems[kind] for kind in kinds} - self._logged):
            log.warning("%s is not shown as it should be: %s", vm.name, problem)
            self._logged.add(problem)
