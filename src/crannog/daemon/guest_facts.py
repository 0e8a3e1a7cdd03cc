"""What running VMs are told in their guest DBs, brought up to date when settings change."""

import base64
import os

from crannog.core.events import Event
from crannog.core.guest_facts import list_guest_facts
from crannog.core.guestdb import is_entry
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon.world import World
from crannog.editing.editor import Editor
from crannog.hostfacts import read_timezone

SEED_BYTES = 64
_SETTINGS = ("property-set:", "property-reset:", "property-del:", "domain-feature-set:", "domain-feature-delete:")
"""Beginnings of the names of events after which a VM may have to be told something else."""


class GuestFacts:
    """Tells VMs what they may know of themselves."""

    def __init__(self, world: World, registry: Registry, editor: Editor) -> None:
        self._agents = world.agents
        self._registry = registry
        self._seeds: dict[str, str] = {}
        """Random text for each VM that runs, the same for as long as it does."""
        world.agents.provide(self.describe)
        editor.listen(self._note)

    def describe(self, uuid: str) -> dict[str, str]:
        """Return the entries of a VM's guest DB; what no entry can hold is left out."""
        vm = self._registry.find_uuid(uuid)
        if not isinstance(vm, LocalVM):
            return {}
        facts = list_guest_facts(vm, timezone=read_timezone(), seed=self._seed(uuid))
        return {path: text for path, text in facts.items() if is_entry(path, text.encode())}

    def _seed(self, uuid: str) -> str:
        if uuid not in self._seeds:
            self._seeds[uuid] = base64.b64encode(os.urandom(SEED_BYTES)).decode("ascii")
        return self._seeds[uuid]

    def _note(self, event: Event) -> None:
        """Tell the VM that an event is about; a netvm's settings are those of the VMs behind it as well."""
        vm = self._registry.by_name(event.subject) if event.subject else None
        if vm and event.name == "domain-shutdown":
            self._seeds.pop(vm.uuid, None)
        elif event.name.startswith(_SETTINGS):
            running = [other for other in self._registry.local_vms() if other.power_state != "Halted"]
            for other in running:
                if vm is None or other is vm or other.netvm is vm or other.template is vm:
                    self._agents.refresh(other.uuid)
