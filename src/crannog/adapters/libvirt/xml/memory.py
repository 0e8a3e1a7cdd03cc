"""Guests whose memory is a file: what QEMU is told past libvirt, which cannot choose that file's name.

QEMU takes the last of several `-machine` options (qemu(1)), so that the memory that libvirt gives it is never touched,
and costs nothing.
"""

import json
from collections.abc import Iterable

from crannog.adapters.libvirt.xml.elements import Element, command_line, element
from crannog.core.domain import DomainSpec

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
"""Elements that only libvirt's QEMU driver knows (https://libvirt.org/drvqemu.html, "Overriding properties")."""

_BACKEND = "crannog-memory"


def memory_elements(spec: DomainSpec) -> Iterable[Element]:
    """Yield what a domain has besides that is saved, or restored: its memory's file, and a generation of its own.

    A guest that finds another generation than before knows that it was restored (QEMU, docs/specs/vmgenid.txt).
    """
    files = spec.memory_files
    if files is None:
        return
    yield element("genid", text=spec.uuid)
    backend = {
        "qom-type": "memory-backend-file",
        "id": _BACKEND,
        "mem-path": files.memory,
        # What is shared is written to the file; what is not begins as a copy of it, page by page.
        "share": not files.is_saved,
        "size": spec.memory << 20,
    }
    arguments = ["-object", json.dumps(backend), "-machine", f"memory-backend={_BACKEND}"]
    arguments += ["-incoming", "defer"] if files.is_saved else []
    yield command_line("qemu", NAMESPACE, *arguments)
