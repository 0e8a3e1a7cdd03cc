"""What a guest says about itself (B13), and what is known about a VM's agent.

`parse_announcement` is the one parser of what the guest wrote below /qubes-tools/ of its guest DB. What comes
out of it is safe to store, log and show: bounded, printable ASCII. Every running VM has a process that loads this, so
that it does without the module dataclasses, which takes 1.5 MB of each.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Self

from crannog.errors import ProtocolError

PREFIX = b"/qubes-tools/"
TEXT_MAX = 64
"""Longest version and name of a system, in characters."""
USER_MAX = 32
STATUS_MAX = 4096
"""Longest line that `AgentStatus.parse` takes, in bytes."""

_USER_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz_")
_USER_OTHER = _USER_FIRST | frozenset("0123456789-")


class AgentState(StrEnum):
    """Whether the guest's agent answers."""

    WAITING = "waiting"
    READY = "ready"
    FALLBACK = "fallback"
    """Ours does not answer, but QEMU's guest agent does (rpc/qga.py)."""


CAN_RENEW, ASLEEP = "1", "asleep"
"""What the agent announces as `renewal`: it can make a restored guest one of its own; it has stopped all others."""


class Announcement(NamedTuple):
    """What the guest's tools say they are. `default_user` is empty when they did not name one.

    `renewal` is how far the agent is with what a saved guest needs: CAN_RENEW, ASLEEP, the number of the order that it
    has carried out last; empty when it knows nothing of that (core.renewal_order).
    """

    version: str
    os: str
    qrexec: bool
    gui: bool
    default_user: str
    renewal: str = ""


class QemuAgent(NamedTuple):
    """What QEMU's guest agent says of itself and its system. A text that it did not say, or that is odd, is empty."""

    version: str
    os: str
    distribution: str
    release: str


def is_user_name(text: str) -> bool:
    """Tell whether `text` is a portable user name: [a-z_][a-z0-9_-]{0,31} (useradd(8))."""
    return 0 < len(text) <= USER_MAX and text[0] in _USER_FIRST and _USER_OTHER.issuperset(text)


def _check_text(name: str, untrusted_text: str) -> str:
    if not 0 < len(untrusted_text) <= TEXT_MAX:
        raise ProtocolError(f"the guest announced a {name} of {len(untrusted_text)} characters (1 to {TEXT_MAX})")
    if not (untrusted_text.isascii() and untrusted_text.isprintable()):
        raise ProtocolError(f"the guest announced a {name} that is not printable ASCII")
    return untrusted_text


def _check_user(untrusted_name: str) -> str:
    if untrusted_name and not is_user_name(untrusted_name):
        raise ProtocolError("the guest announced a default-user that is not a user name")
    return untrusted_name


def _check_renewal(untrusted_word: str) -> str:
    if untrusted_word and not (untrusted_word.isascii() and untrusted_word.isalnum() and len(untrusted_word) <= 32):
        raise ProtocolError("the guest announced a renewal that is not a word of letters and digits")
    return untrusted_word


def _parse_flag(name: str, untrusted_value: bytes) -> bool:
    if untrusted_value not in (b"0", b"1"):
        raise ProtocolError(f"the guest announced a value for {name} that is not 0 or 1")
    return untrusted_value == b"1"


def parse_announcement(untrusted_entries: Mapping[bytes, bytes]) -> Announcement:
    """Return what the guest announces, from the entries of its guest DB.

    Unknown keys are ignored; default-user and renewal may be absent. Raises ProtocolError for anything else that is
    absent or not what it should be.
    """

    def value(name: str) -> bytes:
        untrusted_value = untrusted_entries.get(PREFIX + name.encode())
        if untrusted_value is None:
            raise ProtocolError(f"the guest's announcement lacks {name}")
        return untrusted_value

    return Announcement(
        version=_check_text("version", value("version").decode("latin-1")),
        os=_check_text("os", value("os").decode("latin-1")),
        qrexec=_parse_flag("qrexec", value("qrexec")),
        gui=_parse_flag("gui", value("gui")),
        default_user=_check_user(untrusted_entries.get(PREFIX + b"default-user", b"").decode("latin-1")),
        renewal=_check_renewal(untrusted_entries.get(PREFIX + b"renewal", b"").decode("latin-1")),
    )


class AgentStatus(NamedTuple):
    """What is known about a VM's agent: `announced` is None until a valid announcement came.

    `qemu` is what QEMU's guest agent says, while that one stands in.
    """

    agent: AgentState = AgentState.WAITING
    announced: Announcement | None = None
    qemu: QemuAgent | None = None

    @property
    def runs_commands(self) -> bool:
        """Whether there is an agent that takes commands, ours or QEMU's."""
        return self.agent is not AgentState.WAITING

    def encode(self) -> bytes:
        """Return the status as one line of JSON."""
        announced = self.announced._asdict() if self.announced else None
        if announced and not announced["renewal"]:
            del announced["renewal"]  # as processes that an older crannogd started write it
        qemu = {"qemu": self.qemu._asdict()} if self.qemu else {}
        return json.dumps({"agent": self.agent.value, "announced": announced, **qemu}).encode() + b"\n"

    @classmethod
    def parse(cls, untrusted_line: bytes) -> Self:
        """Return the status that `encode` wrote. Its writer has read guest bytes, so it is checked again.

        Raises ProtocolError for anything that `encode` cannot have written.
        """
        if len(untrusted_line) > STATUS_MAX:
            raise ProtocolError(f"an RPC process sent a status of {len(untrusted_line)} bytes")
        try:
            untrusted_status: Any = json.loads(untrusted_line)
            untrusted_facts: Any = untrusted_status["announced"]
            announced = None if untrusted_facts is None else _parse_facts(untrusted_facts)
            untrusted_qemu: Any = untrusted_status.get("qemu")
            qemu = None if untrusted_qemu is None else _parse_qemu(untrusted_qemu)
            return cls(AgentState(untrusted_status["agent"]), announced, qemu)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ProtocolError("an RPC process sent a status that is no status") from error


def _parse_facts(untrusted_facts: dict[str, Any]) -> Announcement:
    flags = untrusted_facts["qrexec"], untrusted_facts["gui"]
    texts = [untrusted_facts[name] for name in ("version", "os", "default_user")]
    texts.append(untrusted_facts.get("renewal", ""))  # a process that an older crannogd has started knows of none
    if any(not isinstance(flag, bool) for flag in flags) or any(not isinstance(text, str) for text in texts):
        raise TypeError
    version, os_name = _check_text("version", texts[0]), _check_text("os", texts[1])
    return Announcement(version, os_name, flags[0], flags[1], _check_user(texts[2]), _check_renewal(texts[3]))


def _parse_qemu(untrusted_facts: dict[str, Any]) -> QemuAgent:
    texts = [untrusted_facts[name] for name in QemuAgent._fields]
    if any(not isinstance(text, str) for text in texts):
        raise TypeError
    return QemuAgent(*(text and _check_text(name, text) for name, text in zip(QemuAgent._fields, texts, strict=True)))
