"""XML as it comes from disk: parsed within bounds, without entities, or refused with line and reason."""

import re
from typing import cast

from lxml import etree

from crannog.errors import StorageError

_PLACE = re.compile(r", line \d+, column \d+( \(.*\))?$")

MAX_FILE_SIZE = 64 * 2**20
"""Bytes: several times what 10,000 VMs take."""

MAX_ATTRIBUTES = 1000
_COSTS = ((b"<", 3_000_000, "tags"), (b"=", 3_000_000, "attributes"), (b"xmlns", 100, "namespaces"))
"""Each tag and attribute costs a hundred bytes of memory, however short it is; a namespace is written with each element
that is kept."""

_ENCODING = re.compile(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9_.-]+)""")
_ENCODINGS = (b"utf-8", b"us-ascii", b"ascii", b"iso-8859-1")


def parse(data: bytes) -> etree._Element:
    """Return the root element of a document. No entity is ever expanded and nothing else is ever opened.

    Raises StorageError that names the line and the reason.
    """
    if len(data) > MAX_FILE_SIZE:
        raise StorageError(f"it is larger than {MAX_FILE_SIZE // 2**20} MiB")
    _check_cost(data)
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
        raise StorageError("line 1: a document type definition is not allowed in it")
    return root


def _check_cost(data: bytes) -> None:
    """Refuse what would cost too much before a parser sees it. What costs is counted in the raw bytes of ASCII text."""
    encoding = _ENCODING.match(data[: data.find(b"?>") + 2])
    if (
        data[:2] in (b"\xff\xfe", b"\xfe\xff")
        or b"\0" in data[:4]
        or (encoding and encoding[1].lower() not in _ENCODINGS)
    ):
        raise StorageError("line 1: it is not written in UTF-8")
    if b"<!DOCTYPE" in data:
        line = data.count(b"\n", 0, data.index(b"<!DOCTYPE")) + 1
        raise StorageError(f"line {line}: a document type definition is not allowed in it")
    for mark, most, what in _COSTS:
        if data.count(mark) > most:
            raise StorageError(f"it has more than {most} {what}")


def line_of(element: etree._Element) -> int:
    """Return the line that an element stands in, 0 for one that was not read."""
    line: int | None = cast("int | None", element.sourceline)
    return line or 0


def attributes_of(element: etree._Element) -> dict[str, str]:
    """Return an element's attributes; raises StorageError for more of them than make sense."""
    if len(element.attrib) > MAX_ATTRIBUTES:
        raise StorageError(f"<{element.tag!s}> has more than {MAX_ATTRIBUTES} attributes")
    return {str(key): str(value) for key, value in element.attrib.items()}


def raw(element: etree._Element) -> str:
    """Return an element with everything in it as text, to be kept and written again."""
    return etree.tostring(element, encoding="unicode", with_tail=False)
