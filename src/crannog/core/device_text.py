r"""Devices and assignments as text: `key='value'` pairs with one space between them (Admin API, section 7).

Keys that begin with `_` are options. A quote in a value is written `\'`; nothing else is escaped, so a value cannot end
with a backslash: the text would not end where it seems to.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from crannog.core.device_names import ANY, UNIDENTIFIED, DeviceName, Mode
from crannog.core.devices import Assignment
from crannog.errors import ProtocolError

Pairs = Iterable[tuple[str, str]]

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_KNOWN = ("device_id", "port_id", "devclass", "backend_domain", "frontend_domain", "mode")
_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_.-]")
_NOT_PRINTABLE = re.compile(r"[^ -~]")
_NOT_IN_HEAD = re.compile(r"[^!-~]")
_RESERVED_OPTION = "identity"
"""Some versions of Qubes keep a device's id under this name among the options of its assignment."""


@dataclass(frozen=True)
class Device:
    """A device that a backend has. `details` and `options` are pairs, in the order in which they are shown."""

    devclass: str
    port: str
    ident: str = UNIDENTIFIED
    interfaces: str = "?******"
    details: tuple[tuple[str, str], ...] = ()
    """vendor, product, manufacturer, name, serial: whatever is known of these."""
    parent: tuple[str, str] | None = None
    """Port and class of the device that this one is part of."""
    options: tuple[tuple[str, str], ...] = ()


def pack(pairs: Pairs) -> str:
    """Return pairs as text. What a key or a value cannot hold becomes `_`: a file may say anything."""
    return " ".join(f"{_NOT_IN_KEY.sub('_', key)}='{_escape(value)}'" for key, value in pairs)


def _escape(value: str) -> str:
    clean = _NOT_PRINTABLE.sub("_", value)
    if clean.endswith("\\"):
        clean = clean[:-1] + "_"
    return clean.replace("'", "\\'")


def unpack(untrusted_text: str) -> dict[str, str]:
    """Return the pairs of a text, in their order; raises ProtocolError for a text that is not made of them."""
    pairs: dict[str, str] = {}
    untrusted_rest = untrusted_text
    while untrusted_rest or pairs:
        key, _, untrusted_rest = untrusted_rest.partition("='")
        end = _find_end(untrusted_rest)
        value = untrusted_rest[:end].replace("\\'", "'")
        if end < 0 or not _KEY.fullmatch(key) or key in pairs or _NOT_PRINTABLE.search(value):
            raise ProtocolError(f"the payload is not made of KEY='VALUE', each key once, near '{key[:40]}'")
        pairs[key] = value
        untrusted_rest = untrusted_rest[end + 1 :]
        if not untrusted_rest:
            break
        if not untrusted_rest.startswith(" "):
            raise ProtocolError(f"the payload has something behind the value of '{key[:40]}'")
        untrusted_rest = untrusted_rest[1:]
    return pairs


def _find_end(text: str) -> int:
    """Return where the quote is that ends a value, -1 when there is none."""
    end = text.find("'")
    while end > 0 and text[end - 1] == "\\":
        end = text.find("'", end + 1)
    return end


def format_device(device: Device, backend: str) -> str:
    """Return a device of `backend` as a line of a list, without its end."""
    parent = (("parent_port_id", device.parent[0]), ("parent_devclass", device.parent[1])) if device.parent else ()
    pairs = (
        ("device_id", device.ident),
        ("port_id", device.port),
        ("devclass", device.devclass),
        ("backend_domain", backend),
        *device.details,
        ("interfaces", device.interfaces),
        *parent,
        *_as_options(device.options),
    )
    return _line(f"{device.port}:{device.ident}", pairs)


def format_assignment(assignment: Assignment, frontend: str) -> str:
    """Return an assignment to `frontend` as a line of a list, without its end."""
    device = assignment.device
    pairs = (
        ("device_id", device.ident),
        ("port_id", device.port),
        ("devclass", assignment.devclass),
        ("backend_domain", device.backend),
        ("mode", assignment.mode),
        ("frontend_domain", frontend),
        *_as_options(assignment.user_options),
    )
    return _line(device.head, pairs)


def _line(head: str, pairs: Pairs) -> str:
    return f"{_NOT_IN_HEAD.sub('_', head)} {pack(pairs)}"


def _as_options(options: Pairs) -> list[tuple[str, str]]:
    return [(f"_{name}", value) for name, value in options]


def parse_assignment(untrusted_text: str, devclass: str, device: DeviceName, frontend: str) -> Assignment:
    """Return the assignment that a payload describes, of `device` to `frontend`.

    What the payload repeats of these must agree; the device's id is taken from it, as an argument cannot hold every
    character. Raises ProtocolError.
    """
    values = unpack(untrusted_text)
    unknown = next((key for key in values if key not in _KNOWN and not _is_option(key)), None)
    if unknown is not None:
        raise ProtocolError(f"'{unknown[:80]}' is no property of an assignment")
    named = DeviceName(
        values.get("backend_domain", device.backend),
        values.get("port_id", device.port),
        values.get("device_id", device.ident),
    )
    expected = {"devclass": devclass, "frontend_domain": frontend}
    if named.qarg != device.qarg or any(values.get(key, value) != value for key, value in expected.items()):
        raise ProtocolError("the payload is about another device or VM than the call")
    options = tuple((key[1:], value) for key, value in values.items() if key.startswith("_"))
    return Assignment.of(devclass, named, parse_mode(values.get("mode", Mode.MANUAL)), options)


def _is_option(key: str) -> bool:
    return key.startswith("_") and key[1:] not in ("", _RESERVED_OPTION)


def parse_mode(untrusted_text: str) -> Mode:
    """Return the mode that a text names; raises ProtocolError."""
    try:
        return Mode(untrusted_text)
    except ValueError:
        raise ProtocolError(f"'{untrusted_text[:40]}' is no mode; the modes are {', '.join(Mode)}") from None


def parse_filter(untrusted_argument: str) -> tuple[str, str] | None:
    """Return backend and port of an argument `BACKEND+PORT`, None when it is empty; raises ProtocolError."""
    if not untrusted_argument:
        return None
    backend, separator, port = untrusted_argument.partition("+")
    if not backend or not separator or not port or "+" in port:
        raise ProtocolError(f"'{untrusted_argument[:80]}' names no port; it is BACKEND+PORT")
    return backend, ANY if port == "_" else port
