"""The editor: every change of a setting is made in memory, saved, and only then told; one that fails is taken back."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from crannog.core import events, rules
from crannog.core.displays import check_seamless
from crannog.core.events import Event, Listener
from crannog.core.features import check_feature, check_feature_is_free, require
from crannog.core.labels import Label, new_label
from crannog.core.preload_wishes import check_wish
from crannog.core.properties import Holder, Property
from crannog.core.registry import Registry
from crannog.core.tags import check_tag, check_tag_is_free, following_tags
from crannog.core.vms import LocalVM, QubeBase
from crannog.errors import PropertyRefusedError, TagNotFoundError, ValueRefusedError, VMNotHaltedError
from crannog.ports.store import Store

log = logging.getLogger(__name__)

_LEADING = {"guivm", "audiovm", "default_guivm", "default_audiovm", "name"}
"""Properties that the tags of VMs, also of others than the one changed, follow."""

_FANS_OUT = {"default_netvm": "netvm", "provides_network": "netvm"}
"""Properties whose change is told of every VM whose default follows them, with the VMs' property."""


class Editor:
    """Changes the settings of one registry, kept in one store."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self.registry = registry
        self._store = store
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` called with each event, in order, after what it tells of was saved; return what ends that."""
        self._listeners.append(listener)

        def leave() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return leave

    def tell(self, told: Iterable[Event]) -> None:
        """Tell all listeners. One that fails is logged: the change is made, and the others must hear of it."""
        for event in told:
            for listener in tuple(self._listeners):
                try:
                    listener(event)
                except Exception:
                    log.exception("a listener failed at %s", event.name)

    @contextmanager
    def change(self, *holders: Holder) -> Iterator[list[Event]]:
        """Run a block that changes `holders`; save, then tell the events that it put into the list.

        When the block, or saving, fails, the holders are as they were before, and nothing is told.
        """
        before = [(holder, holder.state()) for holder in holders]
        told: list[Event] = []
        try:
            yield told
            self._store.save(self.registry)
        except BaseException:
            for holder, state in before:
                holder.restore(state)
            raise
        self.tell(told)

    def set_property(self, holder: Holder, name: str, text: str) -> None:
        """Give a property the value that `text` means.

        Raises PropertyNotFoundError, PropertyRefusedError, InUseError, VMNotHaltedError, or NotFoundError for a VM or
        label that is named and does not exist.
        """
        declared = self._find_changeable(holder, name)
        try:
            value = declared.kind.parse(text, self.registry)
            if declared.normalise:
                value = declared.normalise(value)
            holder.check_settable(declared, value)
        except PropertyRefusedError:
            raise  # it names the property itself
        except ValueRefusedError as error:
            raise PropertyRefusedError(f"property '{name}' of {holder.title()} was not set: {error}") from None
        self._assign(holder, declared, value)

    def _assign(self, holder: Holder, declared: Property, value: object) -> None:
        name, old = declared.name, holder.get(declared.name)
        with self._following(holder, name) as told:
            has_old = old is not None or declared.kind.is_reference
            told.extend(events.property_set(holder, name, value, old, has_old=has_old))
            if name == "name" and isinstance(holder, QubeBase):
                self.registry.rename(holder, str(value))
                told.extend(events.vm_renamed(str(old), str(value)))
            else:
                holder.values[name] = value
                if name == "template" and isinstance(holder, QubeBase):
                    self.registry.place_layers(holder)

    def reset_property(self, holder: Holder, name: str) -> None:
        """Give a property its default again; raises what `set_property` raises."""
        declared = self._find_changeable(holder, name)
        old = holder.get(name)
        with self._following(holder, name) as told:
            try:
                holder.reset(name)
            except PropertyRefusedError:
                raise
            except ValueRefusedError as error:
                raise PropertyRefusedError(f"property '{name}' of {holder.title()} was not reset: {error}") from None
            told.extend(events.property_reset(holder, declared, old))

    @contextmanager
    def _following(self, holder: Holder, name: str) -> Iterator[list[Event]]:
        """Make a change of a property, with what follows from it for tags and for VMs that follow a global property."""
        leads = name in _LEADING or name in _FANS_OUT
        others = list(self.registry) if leads else []
        holders = dict.fromkeys([holder, *others, *([self.registry] if leads else [])])
        tags = {vm: following_tags(vm) for vm in others}
        shown = _FANS_OUT.get(name, "")
        values = {vm: vm.get(shown) for vm in others if shown in vm.declared() and shown not in vm.values}
        with self.change(*holders) as told:
            yield told
            for vm, old in values.items():
                if vm.get(shown) is not old:
                    told.extend(events.property_set(vm, shown, vm.get(shown), old))
            for vm, old_tags in tags.items():
                told.extend(self._retag(vm, old_tags, following_tags(vm)))

    @staticmethod
    def _retag(vm: QubeBase, gone: set[str], come: set[str]) -> list[Event]:
        if gone == come:
            return []
        before = set(vm.tags)
        vm.tags = (vm.tags - gone) | come
        return events.tags_changed(vm.name, before, vm.tags)

    def set_feature(self, vm: QubeBase, name: str, value: str) -> None:
        """Set a feature; raises ProtocolError for a malformed name or value, DeniedError for the system's own."""
        check_feature(name, value)
        check_feature_is_free(name)
        check_wish(name, value)
        if isinstance(vm, LocalVM):
            check_seamless(vm, name, value)
        self.set_features(vm, {name: value})

    def set_features(self, vm: QubeBase, values: dict[str, str]) -> None:
        """Set several features at once."""
        with self.change(vm) as told:
            for name, value in values.items():
                told.extend(events.feature_set(vm.name, name, value, vm.features.get(name)))
                vm.features[name] = value

    def remove_feature(self, vm: QubeBase, name: str) -> None:
        """Remove a feature; raises FeatureNotFoundError."""
        check_feature_is_free(name)
        require(vm, name, vm.features.get(name))
        with self.change(vm) as told:
            del vm.features[name]
            told.extend(events.feature_removed(vm.name, name))

    def add_tag(self, vm: QubeBase, tag: str) -> None:
        """Add a tag; one that is there stays. Raises ProtocolError or DeniedError."""
        check_tag(tag)
        check_tag_is_free(tag)
        self._change_tags(vm, vm.tags | {tag})

    def remove_tag(self, vm: QubeBase, tag: str) -> None:
        """Remove a tag; raises TagNotFoundError or DeniedError."""
        check_tag_is_free(tag)
        if tag not in vm.tags:
            raise TagNotFoundError(f"{vm.name} has no tag '{tag[:80]}'")
        self._change_tags(vm, vm.tags - {tag})

    def _change_tags(self, vm: QubeBase, tags: set[str]) -> None:
        with self.change(vm) as told:
            told.extend(events.tags_changed(vm.name, vm.tags, tags))
            vm.tags = tags

    def create_label(self, name: str, color: str) -> Label:
        """Add a custom label; raises ValueRefusedError or InUseError."""
        label = new_label(self.registry.labels.values(), name, color)
        with self.change(self.registry):
            self.registry.labels[name] = label
        return label

    def remove_label(self, name: str) -> None:
        """Remove a custom label; raises LabelNotFoundError, LabelInUseError, or ProtocolError for a built-in one."""
        rules.label_removal(self.registry, self.registry.find_label(name))
        with self.change(self.registry):
            del self.registry.labels[name]

    def notes(self, vm: QubeBase) -> str:
        """Return a VM's notes."""
        return self._store.notes(vm.uuid)

    def set_notes(self, vm: QubeBase, text: str) -> None:
        """Keep a VM's notes; raises ValueRefusedError or StorageError."""
        self._store.save_notes(vm.uuid, text)

    def firewall(self, vm: QubeBase) -> str | None:
        """Return a VM's firewall rules as text, None when it was never given any; raises StorageError."""
        return self._store.firewall(vm.uuid)

    def set_firewall(self, vm: QubeBase, text: str | None) -> None:
        """Keep a VM's firewall rules, which were checked; None forgets them. Raises StorageError."""
        self._store.save_firewall(vm.uuid, text)

    def check_halted(self, vm: QubeBase, purpose: str) -> None:
        """Raise VMNotHaltedError, naming the purpose, while the VM is not halted."""
        if not vm.fixed_state and vm.power_state != "Halted":
            raise VMNotHaltedError(
                f"{vm.name} cannot {purpose} while it is {vm.power_state}; shut it down with 'qvm-shutdown {vm.name}'"
            )

    def _find_changeable(self, holder: Holder, name: str) -> Property:
        """Return a property's declaration; raises VMNotHaltedError when it cannot change in the VM's present state."""
        declared = holder.find_property(name)
        if declared.needs_halted and isinstance(holder, QubeBase):
            self.check_halted(holder, f"get another {name}")
        return declared
