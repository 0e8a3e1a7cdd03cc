"""The features that a guest's tools ask for, below /features-request/ of its guest DB: one parser, and what follows.

Names and rules are those of Qubes' core (qubes/ext/core_features.py and its neighbours): switches take 0 or 1, texts
about the system are short, and what is supported is a list of names.
"""

import re
from collections.abc import Mapping

from crannog.errors import ProtocolError

PREFIX = "/features-request/"
SWITCHES = frozenset({"qrexec", "gui", "gui-emulated", "qubes-firewall", "vmexec", "apparmor", "audio"})
TEXTS = frozenset({"os", "os-distribution", "os-version", "os-eol"})
SUPPORTED = ("supported-service.", "supported-rpc.", "supported-feature.")
TEXT_MAX = 64

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,48}")
_TEXT = re.compile(r"[A-Za-z0-9 ._+:-]*")


def parse_request(untrusted_entries: Mapping[str, bytes]) -> dict[str, str]:
    """Return the features that are asked for, by name; unknown names are left out.

    Raises ProtocolError for any that makes no sense: then nothing of it is believed.
    """
    wanted: dict[str, str] = {}
    for path, untrusted_value in untrusted_entries.items():
        name = path.removeprefix(PREFIX)
        if name in SWITCHES:
            wanted[name] = _parse_switch(name, untrusted_value)
        elif name in TEXTS:
            wanted[name] = _parse_text(name, untrusted_value)
        elif name.startswith(SUPPORTED):
            if _NAME.fullmatch(name.partition(".")[2]) is None:
                raise ProtocolError("the guest supports something with a name that is none")
            if _parse_switch(name, untrusted_value):
                wanted[name] = "1"
    return wanted


def _parse_switch(name: str, untrusted_value: bytes) -> str:
    if untrusted_value not in (b"0", b"1"):
        raise ProtocolError(f"the guest asks for the feature {name} with a value that is neither 0 nor 1")
    return "1" if untrusted_value == b"1" else ""


def _parse_text(name: str, untrusted_value: bytes) -> str:
    text = untrusted_value.decode("ascii", "replace")
    if len(text) > TEXT_MAX or not _TEXT.fullmatch(text):
        raise ProtocolError(f"the guest asks for the feature {name} with a text that is longer than {TEXT_MAX}, or odd")
    return text


def changes(present: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """Return the features to set, and with None those to remove: what was supported and is not any more."""
    gone = [name for name in present if name.startswith(SUPPORTED) and name not in wanted]
    new: dict[str, str | None] = {name: value for name, value in wanted.items() if present.get(name) != value}
    return new | dict.fromkeys(gone)
