"""Device assignments as values: which device of which backend a VM gets (Admin API, section 7)."""

from dataclasses import dataclass, replace

BACKEND, PORT = "backend-domain", "id"


@dataclass(frozen=True)
class Assignment:
    """One assignment as the store has it: `attributes` and `options` are pairs, in their order, all of them kept."""

    devclass: str
    attributes: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def backend(self) -> str:
        """Name of the VM that has the device."""
        return dict(self.attributes).get(BACKEND, "")

    @property
    def port(self) -> str:
        """Where the backend has it."""
        return dict(self.attributes).get(PORT, "")

    def with_backend(self, name: str) -> "Assignment":
        """Return the same assignment after its backend got another name."""
        pairs = tuple((key, name if key == BACKEND else value) for key, value in self.attributes)
        return replace(self, attributes=pairs)
