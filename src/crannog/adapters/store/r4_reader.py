"""Reading qubes.xml in the R4 format (design.md, section 5): elements to a registry whose rules all hold.

What this version does not know (elements, properties, attributes) is kept beside what it knows, as XML. What it knows
and finds wrong (a value, a reference, two of the same) is refused with its line.
"""

from collections.abc import Collection, Iterator

from lxml import etree

from crannog.adapters.store.r4_foreign import Foreign
from crannog.adapters.store.r4_parts import IDENTITY, checks_of, identify, read_assignment, read_volume
from crannog.adapters.store.xml_document import attributes_of, line_of
from crannog.core import rules
from crannog.core.devices import Assignment
from crannog.core.kinds import BOOL, INT, MAX_TEXT
from crannog.core.labels import BUILT_IN, Label, check_label_name, parse_color
from crannog.core.pools import BUILT_IN_POOLS, PoolConfig
from crannog.core.properties import Holder, Property
from crannog.core.registry import Registry
from crannog.core.tags import check_tag
from crannog.core.vms import CLASSES, QubeBase
from crannog.errors import CrannogError, StorageError

VERSIONS = ("", "3", "3.0")
"""What the root's `version` may be: Qubes itself writes none."""


_PARTS = ("labels", "pools", "properties", "domains")
Parent = etree._Element | tuple[()]


def _place(parent: Parent) -> str:
    return "" if isinstance(parent, tuple) else str(parent.tag)


class R4Reader:
    """Reads one document. `_at` is the element that is looked at: whatever refuses gets its line."""

    def __init__(self, kernels: set[str]) -> None:
        self.registry = Registry()
        self.registry.kernels = kernels
        self._at = etree.Element("qubes")
        self._foreign = Foreign()
        self._ids: dict[str, str] = {}
        self._references: list[tuple[Holder, Property, etree._Element]] = []
        self._read: list[tuple[Holder, etree._Element]] = []
        self.texts: dict[str, bytes] = {}
        """The VMs as the document has them, by UUID, where writing the same again would mean the same."""

    def read(self, root: etree._Element) -> Registry:
        """Return the registry; raises StorageError that names the line and the reason."""
        self._at = root
        try:
            self._read_root(root)
        except (CrannogError, ValueError) as error:
            raise StorageError(f"line {line_of(self._at)}: {' '.join(str(error).split())}") from error
        return self.registry

    def _read_root(self, root: etree._Element) -> None:
        if root.tag != "qubes" or root.get("version", "") not in VERSIONS:
            raise StorageError("this is not a <qubes version='3.0'> document")
        parts = self._find_parts(root)
        self.registry.labels, self.registry.pools = {}, {}
        self._read_labels(parts.get("labels", ()))
        self._read_pools(parts.get("pools", ()))
        self._add_built_in()
        self._read_properties(self.registry, parts.get("properties", ()))
        self._read_domains(parts.get("domains", ()))
        self._foreign.keep_attributes(self.registry, root, ("version",))
        self._read.append((self.registry, root))
        self._foreign.hand_over()
        self._resolve()
        self._check_all()

    def _find_parts(self, root: etree._Element) -> dict[str, etree._Element]:
        """Return the known children of the root by tag, in whatever order they stand; others are kept."""
        parts: dict[str, etree._Element] = {}
        for child in root:
            self._at = child
            tag = str(child.tag)
            if tag not in _PARTS:
                self._foreign.keep(self.registry, "", child)
            elif tag in parts:
                raise StorageError(f"<{tag}> is there twice")
            else:
                parts[tag] = child
        return parts

    def _add_built_in(self) -> None:
        registry = self.registry
        taken = {label.index for label in registry.labels.values()}
        for label in BUILT_IN:
            if label.name not in registry.labels:
                free = next(number for number in (label.index, *range(9, len(taken) + 18)) if number not in taken)
                taken.add(free)
                registry.labels[label.name] = Label(free, label.name, label.color)
        for pool in BUILT_IN_POOLS:
            if all(other.driver != pool.driver for other in registry.pools.values()):
                name = pool.name if pool.name not in registry.pools else f"{pool.driver}-pool"
                registry.pools.setdefault(name, PoolConfig(name, pool.driver))

    def _read_labels(self, parent: Parent) -> None:
        for element in self._children(parent, "label", self.registry):
            name, ident = check_label_name(element.text or ""), element.get("id", "")
            index = INT.parse(ident.removeprefix("label-"))
            self._claim(f"label-{index}", name)
            if name in self.registry.labels:
                raise StorageError(f"label '{name}' is there twice")
            self.registry.labels[name] = Label(index, name, parse_color(element.get("color", "")))
            self._foreign.keep_attributes(self.registry, element, ("id", "color"), f"@label:{name}")
            self._foreign.keep_inside(self.registry, element, name)

    def _read_pools(self, parent: Parent) -> None:
        for element in self._children(parent, "pool", self.registry):
            values = attributes_of(element)
            name, driver = values.pop("name", ""), values.pop("driver", "")
            if not name or not driver or name in self.registry.pools:
                raise StorageError(f"pool '{name}' has no name or driver, or is there twice")
            self.registry.pools[name] = PoolConfig(name, driver, tuple(values.items()))
            self._foreign.keep_inside(self.registry, element, name)

    def _read_domains(self, parent: Parent) -> None:
        for element in self._children(parent, "domain", self.registry):
            self._read_vm(element)

    def _read_vm(self, element: etree._Element) -> None:
        klass = element.get("class", "")
        if klass not in CLASSES:
            raise StorageError(f"VMs of class '{klass[:80]}' are not known to this version")
        vm = self.registry.dom0 if klass == "AdminVM" else CLASSES[klass](self.registry)
        if klass == "AdminVM":
            if any(holder is vm for holder, _ in self._read):
                raise StorageError("dom0 is there twice")
            vm.values.clear()
        self._foreign.keep_attributes(vm, element, ("class", "id"))
        devices: list[Assignment] = []
        for child in element:
            self._at = child
            self._read_part(vm, child, devices)
        vm.devices = tuple(devices)
        self._at = element
        self._identify(vm, element)
        self._read.append((vm, element))
        text = etree.tostring(element, encoding="utf-8", with_tail=False)
        if element.get("id") == f"domain-{vm.qid}" and b" ref=" not in text:
            self.texts[vm.uuid] = text

    def _read_part(self, vm: QubeBase, child: etree._Element, devices: list[Assignment]) -> None:
        read = {
            "properties": self._read_properties,
            "features": self._read_features,
            "tags": self._read_tags,
            "volume-config": self._read_volumes,
        }.get(str(child.tag))
        if read:
            read(vm, child)
        elif child.tag == "devices":
            self._read_devices(vm, child, devices)
        else:
            self._foreign.keep(vm, "", child)

    def _read_features(self, vm: QubeBase, parent: etree._Element) -> None:
        for element in self._children(parent, "feature", vm):
            name = self._new_name(element, vm.features)
            vm.features[name] = self._text(element)
            self._foreign.keep_attributes(vm, element, ("name",), f"@feature:{name}")
            self._foreign.keep_inside(vm, element, name)

    def _read_tags(self, vm: QubeBase, parent: etree._Element) -> None:
        for element in self._children(parent, "tag", vm):
            name = check_tag(element.get("name", ""))
            vm.tags.add(name)
            self._foreign.keep_attributes(vm, element, ("name",), f"@tag:{name}")
            self._foreign.keep_inside(vm, element, name)

    def _read_volumes(self, vm: QubeBase, parent: etree._Element) -> None:
        for element in self._children(parent, "volume", vm):
            name = self._new_name(element, vm.volumes)
            vm.volumes[name] = read_volume(element)
            self._foreign.keep_inside(vm, element, name)

    def _read_properties(self, holder: Holder, parent: Parent) -> None:
        declared, values, registry = holder.declared(), holder.values, self.registry
        for element in self._children(parent, "property", holder):
            name = element.get("name", "")
            known = declared.get(name)
            if known is None or (known.is_readonly and name not in IDENTITY):
                self._foreign.keep(holder, "properties", element)
                continue
            if name in values:
                raise StorageError(f"property '{name}' is there twice")
            self._foreign.keep_attributes(holder, element, ("name", "ref"), f"@property:{name}")
            self._foreign.keep_inside(holder, element, name)
            if known.kind.is_reference or element.get("ref"):
                values[name] = None
                self._references.append((holder, known, element))
                continue
            text = self._text(element)
            if not text and (known.kind is INT or known.kind is BOOL):
                continue  # no value: the default counts
            value = known.kind.parse(text, registry)
            values[name] = known.normalise(value) if known.normalise and text else value

    def _read_devices(self, vm: QubeBase, parent: etree._Element, devices: list[Assignment]) -> None:
        is_plain = set(parent.attrib) <= {"class"} and all(
            child.tag == "device"
            and not (child.text or "").strip()
            and all(option.tag == "option" and set(option.attrib) == {"name"} and not len(option) for option in child)
            for child in parent
        )
        if not is_plain:
            self._foreign.keep(vm, "", parent)
            return
        devices += [read_assignment(parent.get("class", ""), element) for element in parent]

    def _identify(self, vm: QubeBase, element: etree._Element) -> None:
        ident = element.get("id", "")
        identify(vm, ident)
        if vm is not self.registry.dom0:
            self.registry.adopt(vm)
        self._claim(ident or f"domain-{vm.qid}", vm.name)

    def _claim(self, ident: str, name: str) -> None:
        if ident in self._ids:
            raise StorageError(f"id '{ident[:80]}' is there twice")
        self._ids[ident] = name

    def _resolve(self) -> None:
        """Follow the references: they can point forward, so this comes when all VMs are there."""
        for holder, declared, element in self._references:
            self._at = element
            ident = element.get("ref")
            if ident is not None and ident not in self._ids:
                raise StorageError(f"property '{declared.name}' refers to '{ident[:80]}', which is not there")
            text = self._ids[ident] if ident is not None else self._text(element)
            is_none = ident is None and text == "None"  # as some versions of Qubes write it
            holder.values[declared.name] = declared.kind.parse("" if is_none else text, self.registry)

    def _check_all(self) -> None:
        """Ask of what the file says what is asked of a user, where it could do harm."""
        for holder, element in self._read:
            self._at = element
            for name, check in checks_of(holder):
                try:
                    check()
                except CrannogError as error:
                    raise self._refusal(element, name, holder, error) from error
        lost = rules.find_netvm_loop(self.registry.local_vms())
        if lost is not None:
            try:
                rules.netvm(lost, lost.netvm)
            except CrannogError as error:
                element = next(element for holder, element in self._read if holder is lost)
                raise self._refusal(element, "netvm", lost, error) from error

    def _refusal(self, element: etree._Element, name: str, holder: Holder, error: CrannogError) -> StorageError:
        """Return what says which property of whom is wrong, in the property's line."""
        found = element.find(f"properties/property[@name='{name}']")
        self._at = element if found is None else found
        return StorageError(f"property '{name}' of {holder.title()}: {error}")

    def _children(self, parent: Parent, tag: str, holder: Holder) -> Iterator[etree._Element]:
        """Yield the children of that tag; each is then the place where something can be refused."""
        if isinstance(parent, etree._Element):
            self._foreign.keep_attributes(holder, parent, (), f"@{parent.tag}")
        for child in parent:
            self._at = child
            if child.tag == tag:
                yield child
            else:
                self._foreign.keep(holder, _place(parent), child)

    @staticmethod
    def _new_name(element: etree._Element, taken: Collection[str]) -> str:
        name = element.get("name", "")
        if not name or name in taken:
            raise StorageError(f"<{element.tag}> '{name[:80]}' has no name, or is there twice")
        return name

    @staticmethod
    def _text(element: etree._Element) -> str:
        text = element.text or ""
        if len(text) > MAX_TEXT:
            raise StorageError(f"a value of {len(text)} characters is too long: at most {MAX_TEXT} can be kept")
        return text
