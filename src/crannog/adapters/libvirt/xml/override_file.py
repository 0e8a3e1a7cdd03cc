"""Reads a user's override: a small file of XML that can name nothing outside itself."""

import os
import stat

from lxml import etree

from crannog.adapters.libvirt.xml.elements import Element
from crannog.errors import HypervisorError

MAX_BYTES = 256 << 10
"""No domain's XML comes near that."""


def read_override(path: str) -> Element | None:
    """Return the <domain> in the file; None when there is no such file.

    Raises HypervisorError, with file and line, when it cannot be read, is too long or is no domain.
    """
    untrusted_text = _read(path)
    if untrusted_text is None:
        return None
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(untrusted_text, parser)
    except etree.XMLSyntaxError as error:
        raise refusal(path, error.lineno, f"this is no XML: {error.msg}") from None
    if getattr(root.getroottree().docinfo, "doctype", ""):
        raise refusal(path, 1, "a document type has no place here; remove the line <!DOCTYPE")
    if root.tag != "domain":
        raise refusal(path, root.sourceline, f"the first element is <{root.tag}>; it must be <domain>")
    return root


def refusal(path: str, line: object, problem: str) -> HypervisorError:
    """Return the error about a line of an override."""
    return HypervisorError(f"{path}:{line or 1}: {problem}")


def _read(path: str) -> bytes | None:
    try:
        # Not waiting, should it be a pipe that nobody writes to.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise HypervisorError(f"{path} is not a regular file; it should hold what changes in the VM's domain")
            untrusted_text = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HypervisorError(f"{path} cannot be read: {error.strerror}; mend or remove it") from error
    if len(untrusted_text) > MAX_BYTES:
        raise HypervisorError(
            f"{path} is longer than {MAX_BYTES >> 10} KiB; keep only what differs from the VM's domain"
        )
    return untrusted_text
