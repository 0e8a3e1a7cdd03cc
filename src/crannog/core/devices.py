"""Device assignments as values: which device of which backend a VM gets (Admin API, section 7).

In a file, Qubes R4.3 and we write the attributes backend-domain, id (the port), mode and identity. R4.2 has only the
first two: its assignments are made at every start. Between them there was `required`, and the id as an option.
"""

from dataclasses import dataclass, replace

from crannog.core.device_names import ANY, DEVCLASSES, DeviceName, Mode

BACKEND, PORT, MODE, IDENT = "backend-domain", "id", "mode", "identity"
_LEGACY_REQUIRED = "required"
_YES = ("1", "yes", "true", "on")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Assignment:
    """One assignment as the store has it: `attributes` and `options` are pairs, in their order, all of them kept."""

    devclass: str
    attributes: Pairs
    options: Pairs = ()

    @classmethod
    def of(cls, devclass: str, device: DeviceName, mode: Mode, options: Pairs = ()) -> "Assignment":
        """Return an assignment of a device."""
        attributes = ((BACKEND, device.backend), (PORT, device.port), (MODE, mode.value), (IDENT, device.ident))
        return cls(devclass, attributes, options)

    @property
    def backend(self) -> str:
        """Name of the VM that has the device."""
        return dict(self.attributes).get(BACKEND, "")

    @property
    def port(self) -> str:
        """Where the backend has it."""
        return dict(self.attributes).get(PORT, "")

    @property
    def device(self) -> DeviceName:
        """The device; one of any id at its port when none is named."""
        values = dict(self.attributes)
        ident = values.get(IDENT) or dict(self.options).get(IDENT) or ANY
        return DeviceName(self.backend, self.port or ANY, ident)

    @property
    def mode(self) -> Mode:
        """When the device goes to the VM. A mode that is not known counts as manual: nothing happens by itself."""
        values = dict(self.attributes)
        known = {mode.value: mode for mode in Mode}
        if MODE in values:
            return known.get(values[MODE], Mode.MANUAL)
        is_required = values.get(_LEGACY_REQUIRED, "yes").lower() in _YES
        return Mode.REQUIRED if is_required and Mode.REQUIRED in DEVCLASSES.get(self.devclass, Mode) else Mode.AUTO

    @property
    def user_options(self) -> Pairs:
        """The options, without an id that some versions of Qubes keep among them."""
        return tuple(pair for pair in self.options if pair[0] != IDENT)

    def with_backend(self, name: str) -> "Assignment":
        """Return the same assignment after its backend got another name."""
        pairs = tuple((key, name if key == BACKEND else value) for key, value in self.attributes)
        return replace(self, attributes=pairs)

    def with_mode(self, mode: Mode) -> "Assignment":
        """Return the same assignment in another mode; what else the file says of it stays."""
        pairs = dict(self.attributes)
        pairs.pop(_LEGACY_REQUIRED, None)
        return replace(self, attributes=tuple({**pairs, MODE: mode.value}.items()))
