"""Firewall rules as texts: of a server, of a command line, and of a table (Admin API, section 8).

A rule is a dict of its parts. Parts that a newer server may know are kept, so that writing a list back loses nothing.
"""

from __future__ import annotations

import time
from _socket import AF_INET, AF_INET6, inet_pton

from crannog.cli.server_text import misunderstood
from crannog.errors import UsageError, ValueRefusedError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Rule = dict[str, str]

GET = "admin.vm.firewall.Get"
HOSTS = ("dsthost", "dst4", "dst6")
ORDER = ("action", *HOSTS, "proto", "specialtarget", "dstports", "icmptype", "expire", "comment")
ACTIONS, PROTOCOLS, TARGETS = ("accept", "drop"), ("tcp", "udp", "icmp"), ("dns",)
DEFAULT = "action=accept\n"
"""The list that a VM has when nobody has changed it."""
_HOST_MARKS = frozenset("_.-")
_COMMENT = "comment="
_FORMS = "accept or drop, tcp, udp or icmp, an address or host name, a port or a range of ports, dns, KEY=VALUE"
_MAX_PORT, _MAX_TYPE = 65535, 255


def parse_rules(text: str) -> list[Rule]:
    """Return a server's rules; raises DaemonError for a line that is none."""
    return [_parse_line(line) for line in text.splitlines()]


def _parse_line(line: str) -> Rule:
    head, comment = _split_comment(line)
    rule: Rule = {}
    for word in head.split():
        key, separator, value = word.partition("=")
        if not separator or not key or not value or key in rule:
            raise misunderstood(GET, f"'{line[:80]}' is no rule")
        rule[key] = value
    if rule.get("action") not in ACTIONS:
        raise misunderstood(GET, f"'{line[:80]}' does not say accept or drop")
    return rule if comment is None else {**rule, "comment": comment}


def _split_comment(line: str) -> tuple[str, str | None]:
    """Return what comes before the comment, and the comment, which goes to the line's end; None when there is none."""
    head, separator, comment = f" {line}".partition(f" {_COMMENT}")
    return head, comment if separator else None


def print_rules(rules: Sequence[Rule]) -> str:
    """Return the rules as the API takes them, a line each."""
    return "".join(f"{print_rule(rule)}\n" for rule in rules)


def print_rule(rule: Rule) -> str:
    """Return a rule as one line, its comment last."""
    keys = [*(key for key in ORDER[:-1] if key in rule), *(key for key in rule if key not in ORDER)]
    if "comment" in rule:
        keys.append("comment")
    return " ".join(f"{key}={rule[key]}" for key in keys)


def read_rule(words: Sequence[str], now: float) -> Rule:
    """Return the rule that the words of a command line say; `now` is what `expire=+SECONDS` counts from.

    Words may be KEY=VALUE, or values that say themselves what they are. Raises UsageError or ValueRefusedError.
    """
    rule: Rule = {}
    for word in words:
        key, value = _classify(word)
        if key in rule or (key in HOSTS and any(host in rule for host in HOSTS)):
            raise UsageError(f"'{word}' says once more what the rule says already: {print_rule(rule)}")
        rule[key] = value
    _tell_ports_from_type(rule)
    return _check(rule, now)


def _classify(word: str) -> tuple[str, str]:
    key, separator, value = word.partition("=")
    if not separator:
        return _guess_key(word), word
    if key not in ORDER:
        raise UsageError(f"a rule has no '{key}'; it can have {', '.join(ORDER)}")
    if not value:
        raise UsageError(f"'{word}' has no value; leave it out")
    return key, value


def _guess_key(word: str) -> str:
    for key, values in (("action", ACTIONS), ("proto", PROTOCOLS), ("specialtarget", TARGETS)):
        if word in values:
            return key
    return "dstports" if word.replace("-", "").isdigit() else "dsthost"


def _tell_ports_from_type(rule: Rule) -> None:
    """Take a bare number for the type of a message where the protocol is icmp, which has no ports."""
    if rule.get("proto") == "icmp" and "dstports" in rule and "icmptype" not in rule:
        rule["icmptype"] = rule.pop("dstports")


def _check(rule: Rule, now: float) -> Rule:
    """Return the rule with its values in the server's form; raises ValueRefusedError or UsageError."""
    for key, values in (("action", ACTIONS), ("proto", PROTOCOLS), ("specialtarget", TARGETS)):
        if key in rule and rule[key] not in values:
            raise ValueRefusedError(f"'{rule[key]}' is no {key} of a rule; use {' or '.join(values)}")
    if "action" not in rule:
        raise UsageError(f"the rule says neither accept nor drop; it can have {_FORMS}")
    if "dstports" in rule:
        _refuse_other_protocol(rule, "dstports", ("tcp", "udp"))
        rule["dstports"] = _check_ports(rule["dstports"])
    if "icmptype" in rule:
        _refuse_other_protocol(rule, "icmptype", ("icmp",))
        _check_number("icmptype", rule["icmptype"], _MAX_TYPE)
    if "expire" in rule:
        rule["expire"] = _check_time(rule["expire"], now)
    if not (rule.get("comment", "").isascii() and rule.get("comment", "x").isprintable()):
        raise ValueRefusedError("the comment of a rule must be printable ASCII")
    return _with_checked_host(rule)


def _refuse_other_protocol(rule: Rule, key: str, protocols: Sequence[str]) -> None:
    if rule.get("proto") not in protocols:
        raise UsageError(f"'{key}={rule[key]}' makes sense with {' or '.join(protocols)} only; name the protocol")


def _check_number(key: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > most:
        raise ValueRefusedError(f"'{text}' is no {key} of a rule; it is a number from 0 to {most}")
    return int(text)


def _check_ports(text: str) -> str:
    first, separator, last = text.partition("-")
    low = _check_number("dstports", first, _MAX_PORT)
    high = _check_number("dstports", last, _MAX_PORT) if separator else low
    if high < low:
        raise ValueRefusedError(f"'{text}' is no range of ports: its end is before its start")
    return f"{low}-{high}"


def _check_time(text: str, now: float) -> str:
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 12:
        raise ValueRefusedError(f"'{text}' is no time; expire takes seconds since 1970, or +SECONDS from now")
    return str(int(now) + int(digits)) if text.startswith("+") else str(int(digits))


def _with_checked_host(rule: Rule) -> Rule:
    key = next((key for key in HOSTS if key in rule), None)
    if key is None:
        return rule
    found, host = normalize_host(rule[key])
    is_name = bool(host) and all((c.isascii() and c.isalnum()) or c in _HOST_MARKS for c in host)
    if found == "dsthost" and not is_name:
        raise ValueRefusedError(f"'{host}' is neither an address, with or without /BITS, nor the name of a host")
    return {found if name == key else name: host if name == key else value for name, value in rule.items()}


def normalize_host(text: str) -> tuple[str, str]:
    """Return the key and the form that an address, a network or a host name has in a rule."""
    address, separator, bits = text.partition("/")
    for key, family, most in (("dst4", AF_INET, 32), ("dst6", AF_INET6, 128)):
        try:
            inet_pton(family, address)
        except (OSError, ValueError):
            continue
        if not separator:
            return key, f"{address}/{most}"
        if bits.isascii() and bits.isdigit() and len(bits) < 4 and int(bits) <= most:
            return key, f"{address}/{int(bits)}"
    return "dsthost", text


def is_same(wanted: Rule, rule: Rule) -> bool:
    """Tell whether a rule is the one that was described. What only limits or explains it counts if it was given."""
    keys = {key for key in rule if key not in ("expire", "comment")} | set(wanted)
    return _comparable(wanted, keys) == _comparable(rule, keys)


def _comparable(rule: Rule, keys: set[str]) -> Rule:
    parts = {key: rule[key] for key in keys if key in rule}
    for key in HOSTS:
        if key in parts:
            found, host = normalize_host(parts.pop(key))
            parts[found] = host.lower()
    return parts


def show_time(text: str) -> str:
    """Return the local date and time of seconds since 1970; what is none comes back as it is."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(text)))
    except (ValueError, OverflowError, OSError):
        return text
