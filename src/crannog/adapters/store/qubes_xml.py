"""qubes.xml: the registry as a file. R4 is read and written; R3 is read (design.md, section 5)."""

from dataclasses import dataclass, field

from crannog.adapters.store import r3_document, xml_document
from crannog.adapters.store.r4_reader import R4Reader
from crannog.core.registry import Registry


@dataclass(frozen=True)
class Document:
    """What a file says: the registry, and a sentence for each thing of it that could not be taken over."""

    registry: Registry
    remarks: tuple[str, ...] = ()
    is_old: bool = False
    """It is in a format that is only read: saving writes R4."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """VMs as the file has them, by UUID (see R4Writer.learn)."""


def from_bytes(data: bytes, kernels: set[str]) -> Document:
    """Return what the bytes of a file describe; `kernels` are those that exist now.

    Raises StorageError that names the line and the reason.
    """
    root = xml_document.parse(data)
    remarks: list[str] = []
    is_old = root.tag == r3_document.ROOT
    if is_old:
        root, remarks = r3_document.convert(root)
    reader = R4Reader(kernels)
    registry = reader.read(root)
    return Document(registry, tuple(remarks), is_old, {} if is_old else reader.texts)
