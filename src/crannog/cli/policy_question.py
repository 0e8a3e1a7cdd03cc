"""What the user is asked, and told, about a call: read from the daemon's message, and put into words.

The daemon has checked who calls and where it may go; the service and its argument are the caller's own words. Here all
of it is checked again, as what is shown decides what the user says.
"""

from __future__ import annotations

import json

from crannog.cli.tool import escape
from crannog.errors import ProtocolError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ASK, NOTIFY = b"policy.Ask dom0 name dom0", b"policy.Notify dom0 name dom0"
"""What a message begins with, up to a NUL (qrexec specification, section 6)."""
DENY = "deny"
NO_ANSWER = ""
"""What is sent when there is no answer, which is a denial that is not the user's."""
ALLOW = "allow:"
TARGETS_MAX = 5000
_SHOWN = 60
_LONGEST = 128
"""Most characters of a target: `@dispvm:` and a name."""


class Question:
    """A call that the user decides about. All texts are printable ASCII; `targets` is not empty."""

    def __init__(self, untrusted: dict[str, Any]) -> None:
        """Take a question in; raises ProtocolError."""
        self.source = _read_name(untrusted, "source")
        self.call = _read_call(untrusted)
        self.targets = _read_targets(untrusted)
        default = untrusted.get("default_target", "")
        self.default = default if default in self.targets else ""

    @property
    def sentence(self) -> str:
        """What is asked, in one sentence."""
        return f"{self.source} wants to call {shorten(self.call)}"

    def allow(self, target: str) -> str:
        """Return the answer for a target, which is one of the question's."""
        return f"{ALLOW}{target}"

    def read_answer(self, untrusted_answer: str) -> str | None:
        """Return an answer as the daemon takes it; None for what is none to this question."""
        if untrusted_answer == DENY:
            return DENY
        target = untrusted_answer.removeprefix(ALLOW)
        return untrusted_answer if target != untrusted_answer and target in self.targets else None

    def to_json(self) -> str:
        """Return the question for a program that asks."""
        service, plus, argument = self.call.partition("+")
        told = {"source": self.source, "service": service, "argument": plus + argument or "+"}
        return json.dumps({**told, "targets": self.targets, "default_target": self.default})


class Notice:
    """Something that was decided without a question."""

    def __init__(self, untrusted: dict[str, Any]) -> None:
        """Take it in; raises ProtocolError."""
        words = {"allow": "allowed", "deny": "denied", "fail": "failed"}
        resolution = str(untrusted.get("resolution"))
        if resolution not in words:
            raise ProtocolError("a notice has no resolution that is allow, deny or fail")
        target = untrusted.get("target", "")
        shown = _check_text(target, "target") if target else "@default"
        way = f"{_read_name(untrusted, 'source')} -> {shorten(shown)}"
        self.sentence = f"{words[resolution]}: {way} {shorten(_read_call(untrusted))}"


def parse_message(untrusted_data: bytes) -> Question | Notice:
    """Return what a peer has sent up to its end; raises ProtocolError."""
    untrusted_head, separator, untrusted_body = untrusted_data.partition(b"\0")
    if not separator or untrusted_head not in (ASK, NOTIFY):
        raise ProtocolError("a message is neither policy.Ask nor policy.Notify of dom0")
    try:
        untrusted = json.loads(untrusted_body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message is no JSON: {error}") from None
    if not isinstance(untrusted, dict):
        raise ProtocolError("a message is no JSON object")
    return Question(untrusted) if untrusted_head == ASK else Notice(untrusted)


def shorten(text: str) -> str:
    """Return text as it is shown: without anything that a terminal would obey, and not too long."""
    shown = escape(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}... ({len(text)} characters)"


def _read_name(untrusted: dict[str, Any], key: str) -> str:
    return _check_text(untrusted.get(key), key, _LONGEST)


def _read_call(untrusted: dict[str, Any]) -> str:
    """Return the service with its argument; without an argument, without a `+`."""
    service = _check_text(untrusted.get("service"), "service")
    argument = untrusted.get("argument") or "+"
    if _check_text(argument, "argument") == "+":
        return service
    return service + ("" if argument.startswith("+") else "+") + str(argument)


def _read_targets(untrusted: dict[str, Any]) -> list[str]:
    targets = untrusted.get("targets")
    if not isinstance(targets, list) or not 0 < len(targets) <= TARGETS_MAX:
        raise ProtocolError(f"a question does not have 1 to {TARGETS_MAX} targets")
    return [_check_text(target, "target", _LONGEST) for target in targets]


def _check_text(untrusted_value: object, key: str, longest: int = 65536) -> str:
    """Return a text that is neither empty nor too long, and holds printable ASCII without blanks only."""
    is_fine = isinstance(untrusted_value, str) and 0 < len(untrusted_value) <= longest
    if not is_fine or not all("!" <= sign <= "~" for sign in str(untrusted_value)):
        raise ProtocolError(f"the {key} of a message is empty, too long, or not printable ASCII")
    return str(untrusted_value)
