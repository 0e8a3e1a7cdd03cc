"""The features in which crannogd keeps its books of disposables that are started in advance."""

from collections.abc import Set as AbstractSet

from crannog.core import events
from crannog.core.events import Event
from crannog.core.preload_wishes import COMPLETED, IN_PROGRESS, INTERNAL, NAMES, is_preloaded, wanted_delay
from crannog.core.registry import Registry
from crannog.core.tags import handed_over
from crannog.core.vms import QubeBase
from crannog.editing.editor import Editor


class PreloadBooks:
    """Writes them: what is in the store is what the next crannogd goes by."""

    def __init__(self, registry: Registry, editor: Editor) -> None:
        self._registry = registry
        self._editor = editor

    def note_begin(self, template: QubeBase, reason: str) -> None:
        """Tell that a VM of a template begins, and why; nothing is saved."""
        self._editor.tell(events.preload_began(template.name, reason))

    def note_ready(self, vm: QubeBase, recipe: str) -> None:
        """Save that a VM is ready, and what it was made from; raises StorageError."""
        with self._editor.change(vm) as told:
            del vm.features[IN_PROGRESS]
            vm.features[COMPLETED] = recipe
            told.extend(events.feature_removed(vm.name, IN_PROGRESS))
            told.extend(events.feature_set(vm.name, COMPLETED, recipe, None))

    def save_claim(self, vm: QubeBase, created_by: str) -> None:
        """Save that a VM is somebody's, before anybody hears its name; raises StorageError, and it is nobody's then."""
        template = vm.template
        assert template is not None  # noqa: S101 - disposables have one
        with self._editor.change(vm, template) as told:
            before, vm.tags = vm.tags, handed_over(vm.tags, self._registry.find_vm(created_by))
            told.extend(events.tags_changed(vm.name, before, vm.tags))
            for name in (IN_PROGRESS, COMPLETED, INTERNAL):
                kept = template.features.get(name) if name == INTERNAL else None
                if kept is None and vm.features.pop(name, None) is not None:
                    told.extend(events.feature_removed(vm.name, name))
            told.extend(self._put_names(template))
            told.extend(events.preload_used(template.name, vm.name, wanted_delay(template)))

    def keep_names(self, pools: AbstractSet[str]) -> None:
        """Have the templates name what they have ready; `pools` are the UUIDs of those that may have something."""
        for vm in self._registry.local_vms():
            if (vm.uuid in pools or NAMES in vm.features) and vm.features.get(NAMES, "") != self._names_of(vm):
                with self._editor.change(vm) as told:
                    told.extend(self._put_names(vm))

    def _put_names(self, template: QubeBase) -> list[Event]:
        old, new = template.features.get(NAMES), self._names_of(template)
        if new == (old or ""):
            return []
        if new:
            template.features[NAMES] = new
            return events.feature_set(template.name, NAMES, new, old)
        del template.features[NAMES]
        return events.feature_removed(template.name, NAMES)

    def _names_of(self, template: QubeBase) -> str:
        there = (vm for vm in self._registry.users_of_template(template) if is_preloaded(vm))
        return " ".join(vm.name for vm in there)
