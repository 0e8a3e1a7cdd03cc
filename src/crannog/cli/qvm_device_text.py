"""Devices and assignments as texts: on a command line, as a service's argument, in a payload (Admin API, section 7)."""

from __future__ import annotations

from crannog.cli.server_text import misunderstood
from crannog.errors import UsageError, ValueRefusedError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ANY = "*"
"""In the place of a port or of a device's id: whichever it is."""
_ARGUMENT_MARKS = frozenset("_.-:@~")
"""What the name of a port or device may hold beside letters and digits, so that a request can carry it."""
_WILD = frozenset("*?")


class Device:
    """Which device: one of a backend, at a port, with an id. Either of the last two may be ANY."""

    def __init__(self, devclass: str, backend: str, port: str, device_id: str = ANY) -> None:
        self.devclass = devclass
        self.backend = backend
        self.port = port
        self.device_id = device_id

    def __str__(self) -> str:
        """Return it as on a command line."""
        return f"{self.backend}:{self.port}" + ("" if self.device_id == ANY else f":{self.device_id}")

    def key(self) -> tuple[str, str, str]:
        """Return what tells it from all others of its class."""
        return self.backend, self.port, self.device_id

    def argument(self) -> str:
        """Return it as the argument of a service; raises ValueRefusedError for what none can carry."""
        for part, marks in ((self.backend, _ARGUMENT_MARKS), (self.port, _ARGUMENT_MARKS | _WILD),
                            (self.device_id, _ARGUMENT_MARKS | _WILD)):  # fmt: skip
            if not part or not all((char.isascii() and char.isalnum()) or char in marks for char in part):
                raise ValueRefusedError(
                    f"{str(self)[:120]!a} is no device; write BACKEND:PORT or BACKEND:PORT:DEVICEID"
                )
        return "+".join(part.translate(_AS_ARGUMENT) for part in self.key())

    def covers(self, other: Device) -> bool:
        """Tell whether `other` is what this describes."""
        return (
            self.backend == other.backend
            and self.port in (ANY, other.port)
            and self.device_id in (ANY, other.device_id)
        )

    def with_id(self, device_id: str) -> Device:
        """Return the same port, with that device only."""
        return Device(self.devclass, self.backend, self.port, device_id)

    def at_any_port(self) -> Device:
        """Return the same device, wherever its backend has it."""
        return Device(self.devclass, self.backend, ANY, self.device_id)


_AS_ARGUMENT = str.maketrans({":": "+", "*": "_", "?": "_"})


def read_device(devclass: str, text: str) -> tuple[Device, bool]:
    """Return the device of BACKEND:PORT[:DEVICEID], and whether its id was given; raises UsageError for anything else.

    An id that is not given is ANY.
    """
    backend, _, rest = text.partition(":")
    port, separator, device_id = rest.partition(":")
    if not backend or not port or (separator and not device_id):
        raise UsageError(f"'{text}' names no device; write BACKEND:PORT or BACKEND:PORT:DEVICEID, as in sys-usb:sda")
    device = Device(devclass, backend, port, device_id or ANY)
    device.argument()
    return device, bool(separator)


def read_options(texts: Iterable[str]) -> dict[str, str]:
    """Return what KEY=VALUE texts say; raises UsageError or ValueRefusedError for what no assignment can carry."""
    options: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"--option takes KEY=VALUE, not '{text}'")
        if key in options:
            raise UsageError(f"option '{key}' is given twice")
        if not (key.isascii() and all(char.isalnum() or char in "_.-" for char in key)):
            raise ValueRefusedError(f"'{key}' cannot be the name of a device's option: use letters, digits, _ . and -")
        if not (value.isascii() and value.isprintable()) or "\\" in value:
            raise ValueRefusedError(f"option '{key}' of a device must be printable ASCII without '\\'")
        options[key] = value
    return options


def print_assignment(device: Device, mode: str, options: dict[str, str]) -> str:
    """Return an assignment as the API takes it."""
    pairs = {
        "device_id": device.device_id,
        "port_id": device.port,
        "devclass": device.devclass,
        "backend_domain": device.backend,
        "mode": mode,
        **{f"_{key}": value for key, value in options.items()},
    }
    return " ".join("{}='{}'".format(key, value.replace("'", "\\'")) for key, value in pairs.items())


def parse_line(method: str, devclass: str, line: str) -> tuple[Device, dict[str, str]]:
    """Return the device, and all that is said of it, in a line of a list; raises DaemonError for anything else."""
    name, _, text = line.partition(" ")
    pairs = parse_pairs(method, text)
    missing = [key for key in ("backend_domain", "port_id", "device_id") if not pairs.get(key)]
    if not name or missing:
        raise misunderstood(method, f"'{line[:80]}' says nothing of {' and '.join(missing) or 'a device'}")
    return Device(devclass, pairs["backend_domain"], pairs["port_id"], pairs["device_id"]), pairs


def parse_pairs(method: str, text: str) -> dict[str, str]:
    r"""Return what a text of `key='value'` pairs says, in their order; `\'` in a value is a quote.

    Raises DaemonError for any other text.
    """
    pairs: dict[str, str] = {}
    rest = text
    while rest:
        key, separator, rest = rest.partition("='")
        value, rest = _take_value(rest)
        if not separator or value is None or not key or key in pairs or not key.isprintable() or set(key) & set(" '"):
            raise misunderstood(method, f"'{text[:120]}' is not made of KEY='VALUE'")
        pairs[key] = value
        if rest and (rest[0] != " " or len(rest) == 1):
            raise misunderstood(method, f"'{text[:120]}' is not made of KEY='VALUE'")
        rest = rest[1:]
    return pairs


def _take_value(text: str) -> tuple[str | None, str]:
    """Return the value up to its closing quote, and what comes after that; None when there is no such quote."""
    end = text.find("'")
    while end > 0 and text[end - 1] == "\\":
        end = text.find("'", end + 1)
    if end < 0:
        return None, ""
    return text[:end].replace("\\'", "'"), text[end + 1 :]
