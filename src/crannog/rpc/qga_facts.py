"""What QEMU's guest agent says of itself and its system, parsed once (QEMU, docs/interop/qemu-ga-ref). Pure."""

import re
from typing import NamedTuple

from crannog.core.announcement import QemuAgent
from crannog.errors import ProtocolError
from crannog.rpc.qga_messages import Reply

EXEC, EXEC_STATUS, SHUTDOWN, OSINFO = "guest-exec", "guest-exec-status", "guest-shutdown", "guest-get-osinfo"
_USED = frozenset({EXEC, EXEC_STATUS, SHUTDOWN, OSINFO})
WINDOWS = "Windows"
_SYSTEMS = {"mswindows": WINDOWS, "freebsd": "FreeBSD"}
"""Names of systems by what guest-get-osinfo calls them; all others are distributions of Linux."""
_TEXT = re.compile(r"[A-Za-z0-9 ._+:()-]{1,64}")
PID_MAX = 1 << 32


class Ability(NamedTuple):
    """What the agent is, and which of its commands its system allows."""

    version: str
    commands: frozenset[str]


def parse_info(reply: Reply) -> Ability:
    """Return what guest-info says; raises ProtocolError when it is no such answer."""
    untrusted_info = _dict_of(reply)
    untrusted_list = untrusted_info.get("supported_commands")
    if not isinstance(untrusted_list, list):
        raise ProtocolError("it does not say what it can do")
    names = [entry.get("name") for entry in untrusted_list if isinstance(entry, dict) and entry.get("enabled") is True]
    return Ability(_text(untrusted_info, "version"), frozenset(name for name in names if isinstance(name, str)) & _USED)


def parse_osinfo(reply: Reply, version: str) -> QemuAgent:
    """Return what guest-get-osinfo says of an agent of that version; a guest that does not tell is none the worse."""
    if reply.error:
        return QemuAgent(version, "", "", "")
    untrusted_info = _dict_of(reply)
    distribution = _text(untrusted_info, "id")
    system = _SYSTEMS.get(distribution, "Linux" if distribution else "")
    return QemuAgent(version, system, distribution, _text(untrusted_info, "version-id"))


def parse_pid(reply: Reply) -> int:
    """Return the number of the process that guest-exec has started; raises ProtocolError."""
    pid = _dict_of(reply).get("pid")
    if type(pid) is not int or not 0 < pid < PID_MAX:
        raise ProtocolError("it started a process without a number")
    return pid


class Outcome(NamedTuple):
    """How a command ended, and whether something of its outputs was left out."""

    code: int
    outputs: tuple[bytes, bytes]
    is_cut: bool


def parse_outcome(reply: Reply) -> Outcome | None:
    """Return what guest-exec-status says, None while the command runs; raises ProtocolError."""
    untrusted_status = _dict_of(reply)
    if untrusted_status.get("exited") is False:
        return None
    code, signal = untrusted_status.get("exitcode", 0), untrusted_status.get("signal", 0)
    if type(code) is not int or type(signal) is not int or untrusted_status.get("exited") is not True:
        raise ProtocolError("it does not say how a command ended")
    is_cut = any(untrusted_status.get(f"{name}-truncated") is True for name in ("out", "err"))
    return Outcome(128 + (signal & 0x7F) if signal else code & 0xFF, reply.outputs, is_cut)


def _dict_of(reply: Reply) -> dict[str, object]:
    if not isinstance(reply.untrusted_value, dict):
        raise ProtocolError(reply.error or "it returned something odd")
    return reply.untrusted_value


def _text(untrusted_dict: dict[str, object], key: str) -> str:
    untrusted_text = untrusted_dict.get(key)
    return untrusted_text if isinstance(untrusted_text, str) and _TEXT.fullmatch(untrusted_text) else ""
