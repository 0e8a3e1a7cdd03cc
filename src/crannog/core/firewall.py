"""Firewall rules: untrusted text to values and back (Admin API, section 8).

One rule a line, `key=value` words in any order, a comment last. What is kept and returned is always in one form:
addresses with the length of their prefix, ports as a range, keys in the order of the specification.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_interface

from crannog.errors import ValueRefusedError

MAX_RULES = 1000
"""Most rules of one VM: more than anybody writes, few enough to be loaded at a start."""

MAX_LINE = 3072
"""Longest rule in bytes: what an entry of the netvm's guest DB holds."""

MAX_COMMENT = 2000
"""Longest comment in bytes, so that a rule in its one form always fits into a line."""

_KEYS = ("action", "dsthost", "dst4", "dst6", "proto", "specialtarget", "dstports", "icmptype", "expire")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")
_LABEL = re.compile(r"[a-z0-9_][a-z0-9_-]{0,62}")
_PRINTABLE = re.compile(r"[ -~]*")
_MAX_HOST = 253
"""Longest DNS name in text form (RFC 1035, section 2.3.4)."""


@dataclass(frozen=True)
class Rule:
    """One rule. `host` is a DNS name or an address with the length of its prefix; empty means every destination."""

    action: str
    host: str = ""
    proto: str = ""
    specialtarget: str = ""
    dstports: tuple[int, int] | None = None
    icmptype: int | None = None
    expire: int | None = None
    """Seconds since the epoch from which on the rule does not count."""
    comment: str = ""

    def is_expired(self, now: float) -> bool:
        """Tell whether the rule's time is over."""
        return self.expire is not None and self.expire <= now

    @property
    def host_key(self) -> str:
        """The key that says what kind of destination `host` is."""
        if "/" not in self.host:
            return "dsthost"
        return "dst6" if ":" in self.host else "dst4"


DEFAULT_RULES = (Rule("accept"),)
"""The rules of a VM that nobody has given any."""


def parse_rules(untrusted_text: str) -> tuple[Rule, ...]:
    """Return the rules of a text; no text is no rule. Raises ValueRefusedError with line and reason, nothing else."""
    if not untrusted_text:
        return ()
    untrusted_lines = untrusted_text.removesuffix("\n").split("\n")
    if len(untrusted_lines) > MAX_RULES:
        raise ValueRefusedError(f"{len(untrusted_lines)} firewall rules are too many; at most {MAX_RULES} can be kept")
    return tuple(_parse_numbered(number, line) for number, line in enumerate(untrusted_lines, 1))


def _parse_numbered(number: int, untrusted_line: str) -> Rule:
    try:
        return parse_rule(untrusted_line)
    except ValueRefusedError as error:
        raise ValueRefusedError(f"firewall rule {number} was refused: {error}") from None


def parse_rule(untrusted_line: str) -> Rule:
    """Return the rule of one line; raises ValueRefusedError with the reason."""
    if len(untrusted_line) > MAX_LINE:
        raise ValueRefusedError(f"it is longer than {MAX_LINE} characters")
    if not _PRINTABLE.fullmatch(untrusted_line):
        raise ValueRefusedError("it holds characters that are not printable ASCII")
    untrusted_words, comment = _split_comment(untrusted_line)
    values = _split_words(untrusted_words)
    if "action" not in values:
        raise ValueRefusedError("it has no action; write action=accept or action=drop")
    read = {key: _READERS[key](value) for key, value in values.items()}
    rule = Rule(**_without_address_kinds(read), comment=comment)  # type: ignore[arg-type]
    _check_combination(rule)
    return rule


def _split_comment(line: str) -> tuple[list[str], str]:
    """Return the words before the comment, and the comment, which is the rest of the line."""
    words = line.split(" ")
    at = next((index for index, word in enumerate(words) if word.startswith("comment=")), len(words))
    comment = " ".join(words[at:]).removeprefix("comment=")
    if len(comment) > MAX_COMMENT:
        raise ValueRefusedError(f"its comment is longer than {MAX_COMMENT} characters")
    return words[:at], comment


def _split_words(untrusted_words: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in untrusted_words:
        key, separator, value = word.partition("=")
        if not separator or not value:
            raise ValueRefusedError(f"'{word[:80]}' is not KEY=VALUE; words are separated by one space")
        if key not in _KEYS:
            raise ValueRefusedError(f"'{key[:80]}' is not a key; the keys are {', '.join(_KEYS)} and comment")
        if key in values:
            raise ValueRefusedError(f"{key} is there twice")
        values[key] = value
    return values


def _without_address_kinds(read: dict[str, object]) -> dict[str, object]:
    """Return the values with the destination, whatever key it came under, as `host`."""
    kinds = [key for key in ("dsthost", "dst4", "dst6") if key in read]
    if len(kinds) > 1:
        raise ValueRefusedError(f"{' and '.join(kinds)} exclude each other: a rule has one destination")
    return {"host" if key in kinds else key: value for key, value in read.items()}


def _check_combination(rule: Rule) -> None:
    if rule.dstports is not None and rule.proto not in ("tcp", "udp"):
        raise ValueRefusedError("dstports needs proto=tcp or proto=udp")
    if rule.icmptype is not None and rule.proto != "icmp":
        raise ValueRefusedError("icmptype needs proto=icmp")


def _one_of(key: str, *known: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in known:
            raise ValueRefusedError(f"{key} cannot be '{value[:80]}'; it is {' or '.join(known)}")
        return value

    return read


def _number(key: str, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not _NUMBER.fullmatch(value) or int(value) > most:
            raise ValueRefusedError(f"{key} cannot be '{value[:80]}'; it is a decimal number of at most {most}")
        return int(value)

    return read


_read_port = _number("a port of dstports", 65535)


def _read_ports(value: str) -> tuple[int, int]:
    first, separator, last = value.partition("-")
    ports = _read_port(first), _read_port(last if separator else first)
    if ports[0] > ports[1]:
        raise ValueRefusedError(f"dstports cannot be '{value[:80]}': the first port is above the last")
    return ports


def _address(version: int) -> Callable[[str], str]:
    def read(value: str) -> str:
        found = _parse_address(value)
        if found is None or (":" in found) != (version == 6):
            raise ValueRefusedError(f"dst{version} cannot be '{value[:80]}'; it is an IPv{version} address or network")
        return found

    return read


def _parse_address(value: str) -> str | None:
    """Return an address or network with its prefix length, or None. Bits behind the prefix are kept as they are."""
    _, separator, prefix = value.partition("/")
    if "%" in value or (separator and not _NUMBER.fullmatch(prefix)):
        return None  # neither scopes nor netmasks
    try:
        return ip_interface(value).with_prefixlen
    except ValueError:
        return None


def _read_host(value: str) -> str:
    """Return a destination that is a DNS name, an address or a network."""
    address = _parse_address(value)
    if address is not None:
        return address
    name = value.lower()
    labels = name.split(".")
    is_name = len(name) <= _MAX_HOST and all(_LABEL.fullmatch(label) for label in labels)
    if not is_name or labels[-1].isdigit():  # a name that ends in a number is an address with an error in it
        raise ValueRefusedError(f"dsthost cannot be '{value[:80]}'; it is a DNS name, an address or a network")
    return name


_READERS: dict[str, Callable[[str], object]] = {
    "action": _one_of("action", "accept", "drop"),
    "dsthost": _read_host,
    "dst4": _address(4),
    "dst6": _address(6),
    "proto": _one_of("proto", "tcp", "udp", "icmp"),
    "specialtarget": _one_of("specialtarget", "dns"),
    "dstports": _read_ports,
    "icmptype": _number("icmptype", 255),
    "expire": _number("expire", 10**12 - 1),
}


def format_rule(rule: Rule) -> str:
    """Return a rule as one line without its end."""
    ports = f"{rule.dstports[0]}-{rule.dstports[1]}" if rule.dstports else ""
    words = (
        ("action", rule.action),
        (rule.host_key, rule.host),
        ("proto", rule.proto),
        ("specialtarget", rule.specialtarget),
        ("dstports", ports),
        ("icmptype", "" if rule.icmptype is None else str(rule.icmptype)),
        ("expire", "" if rule.expire is None else str(rule.expire)),
        ("comment", rule.comment),
    )
    return " ".join(f"{key}={value}" for key, value in words if value)


def format_rules(rules: Iterable[Rule]) -> str:
    """Return rules as text, one a line."""
    return "".join(f"{format_rule(rule)}\n" for rule in rules)
