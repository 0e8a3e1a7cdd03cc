"""What policy knows of the VMs: a value that the caller builds, such as from internal.GetSystemInfo (section 6)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from crannog.errors import ProtocolError
from crannog.policy.tokens import ADMIN_NAME, UUID_PREFIX

RUNNING = "Running"
ADMIN_CLASS = "AdminVM"
REMOTE_CLASS = "RemoteVM"


@dataclass(frozen=True, slots=True)
class VMInfo:
    """One VM. References to other VMs are names; None is no VM."""

    name: str
    uuid: str
    klass: str
    tags: frozenset[str] = frozenset()
    power_state: str = "Halted"
    template_for_dispvms: bool = False
    default_dispvm: str | None = None
    guivm: str | None = None
    relayvm: str | None = None
    """Of a RemoteVM: the VM that leads to it."""
    transport_rpc: str | None = None
    """Of a RemoteVM: the service of the relay that calls are handed to."""
    icon: str | None = None
    label: str = ""
    is_internal: bool = False

    @property
    def is_admin(self) -> bool:
        """Tell whether it is dom0."""
        return self.klass == ADMIN_CLASS

    @property
    def is_remote(self) -> bool:
        """Tell whether it lives on another host."""
        return self.klass == REMOTE_CLASS


class SystemInfo:
    """All VMs at one moment, by name and by UUID."""

    __slots__ = ("_by_name", "_by_uuid")

    def __init__(self, vms: Iterable[VMInfo]) -> None:
        self._by_name = {vm.name: vm for vm in vms}
        self._by_uuid = {vm.uuid.lower(): vm for vm in self._by_name.values()}

    def __iter__(self) -> Iterator[VMInfo]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str | None) -> VMInfo | None:
        """Return the VM of a name or of `uuid:UUID`; None when there is none."""
        if name is None:
            return None
        if name.startswith(UUID_PREFIX):
            return self._by_uuid.get(name.removeprefix(UUID_PREFIX))
        return self._by_name.get(name)

    def tags(self) -> frozenset[str]:
        """Return the tags that any VM has."""
        return frozenset(tag for vm in self for tag in vm.tags)


def read_system(data: object) -> SystemInfo:
    """Return the value of what internal.GetSystemInfo answers, read from JSON; raises ProtocolError."""
    try:
        domains = data["domains"]  # type: ignore[index]
        return SystemInfo(_read_vm(name, fields) for name, fields in domains.items())
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"what the daemon says of its VMs is not understood: {error!r}") from None


def _read_vm(name: str, fields: Mapping[str, object]) -> VMInfo:
    tags = fields["tags"]
    if not isinstance(tags, list):
        raise TypeError(f"the tags of {name} are no list")

    def get(key: str) -> str | None:
        value = fields.get(key)
        return str(value) if value else None

    return VMInfo(
        name=name,
        uuid=str(fields["uuid"]),
        klass=ADMIN_CLASS if name == ADMIN_NAME else str(fields["type"]),
        tags=frozenset(map(str, tags)),
        power_state=str(fields["power_state"]),
        template_for_dispvms=fields["template_for_dispvms"] is True,
        default_dispvm=get("default_dispvm"),
        guivm=get("guivm"),
        relayvm=get("relayvm"),
        transport_rpc=get("transport_rpc"),
        icon=get("icon"),
        label=get("label") or "",
        is_internal=bool(fields.get("internal")),
    )
