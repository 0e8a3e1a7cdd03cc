"""XML as it comes from disk: parsed within bounds, without entities, or refused with line and reason."""

import re
from typing import cast

from lxml import etree

from crannog.errors import StorageError

_PLACE = re.compile(r", line \d+, column \d+( \(.*\))?$")

MAX_FILE_SIZE = 64 * 2**20
"""Bytes: several times what 10,000 VMs take."""

MAX_MARKUP = 3_000_000
"""Opening and closing tags: each costs a hundred bytes of memory, however short it is."""


def parse(data: bytes) -> etree._Element:
    """Return the root element of a document. No entity is ever expanded and nothing else is ever opened.

    Raises StorageError that names the line and the reason.
    """
    if len(data) > MAX_FILE_SIZE:
        raise StorageError(f"it is larger than {MAX_FILE_SIZE // 2**20} MiB")
    if data.count(b"<") > MAX_MARKUP:
        raise StorageError(f"it has more than {MAX_MARKUP} tags")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True, huge_tree=False
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        # lxml's reasons can have several lines, and end with the line's number.
        reason = _PLACE.sub("", " ".join(str(error.msg).split()))
        raise StorageError(f"line {error.lineno or 0}: {reason}") from error
    except ValueError as error:
        raise StorageError(f"line 0: {error}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise StorageError(f"line {root.sourceline}: a document type definition is not allowed in it")
    return root


def line_of(element: etree._Element) -> int:
    """Return the line that an element stands in, 0 for one that was not read."""
    line: int | None = cast("int | None", element.sourceline)
    return line or 0


def raw(element: etree._Element) -> str:
    """Return an element with everything in it as text, to be kept and written again."""
    return etree.tostring(element, encoding="unicode", with_tail=False)
