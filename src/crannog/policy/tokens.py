"""The words by which policy names VMs, and where each may stand (qrexec specification, section 5)."""

import re
from dataclasses import dataclass
from enum import Enum, Flag, auto

from crannog.policy.problems import PolicyRefusedError, shown

UUID_PREFIX = "uuid:"
ADMIN_NAME = "dom0"
ADMIN_UUID = "00000000-0000-0000-0000-000000000000"
"""As in core.vms, which would load the whole model into a process that only asks policy."""


class Place(Flag):
    """Where a token stands."""

    SOURCE = auto()
    TARGET = auto()
    REDIRECT = auto()
    """The value of target= or default_target=."""
    INTENDED = auto()
    """What a caller asks for."""


EVERYWHERE = Place.SOURCE | Place.TARGET | Place.REDIRECT | Place.INTENDED
_RULE = Place.SOURCE | Place.TARGET
_NAMES = {
    Place.SOURCE: "as the source",
    Place.TARGET: "as the target",
    Place.REDIRECT: "in target= or default_target=",
    Place.INTENDED: "in a request",
}


class Kind(Enum):
    """What a token means: the text that is its whole, or its beginning; and where it may stand."""

    NAME = ("", EVERYWHERE)
    UUID = (UUID_PREFIX, EVERYWHERE)
    ANY = ("*", _RULE)
    """Every VM, dom0 included."""
    ADMIN = ("@adminvm", EVERYWHERE)
    ANYVM = ("@anyvm", _RULE)
    """Every VM but dom0, and every disposable that would be made."""
    DEFAULT = ("@default", Place.TARGET | Place.INTENDED)
    """The caller named no VM."""
    DISPVM = ("@dispvm", Place.TARGET | Place.REDIRECT | Place.INTENDED)
    """A new disposable of the caller's default_dispvm."""
    DISPVM_TAG = ("@dispvm:@tag:", _RULE)
    DISPVM_OF = ("@dispvm:", EVERYWHERE)
    """A new disposable of the named VM."""
    TAG = ("@tag:", _RULE)
    TYPE = ("@type:", _RULE)

    @property
    def text(self) -> str:
        """The whole token, or its beginning."""
        return self.value[0]

    @property
    def places(self) -> Place:
        """Where it may stand."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Token:
    """One word. `text` is its one form: equal texts mean the same."""

    kind: Kind
    value: str
    """The name, UUID, tag or class behind the kind's own text; a disposable's template may be `uuid:UUID`."""
    text: str

    def __str__(self) -> str:
        return self.text


def token(kind: Kind, value: str = "") -> Token:
    """Return the token of that kind and value; the value is trusted to fit."""
    return Token(kind, value, kind.text + value)


ADMIN = token(Kind.ADMIN)
DEFAULT = token(Kind.DEFAULT)
DISPVM = token(Kind.DISPVM)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_PATTERNS = {
    Kind.NAME: (_NAME, "a VM's name is letters, digits, '_', '.' and '-', at most 63 of them"),
    Kind.UUID: (
        _UUID,
        "a UUID is 32 hexadecimal digits, with dashes after the 8th, 12th, 16th and 20th",
    ),
    Kind.TAG: (re.compile(r"[A-Za-z0-9_-]{1,255}"), "a tag is letters, digits, '_' and '-'"),
    Kind.TYPE: (re.compile(r"[A-Za-z]{1,63}"), "a type is a class of VMs, such as AppVM"),
}
_WHOLE = {kind.text: kind for kind in (Kind.ANY, Kind.ADMIN, Kind.ANYVM, Kind.DEFAULT, Kind.DISPVM)}
_PREFIXED = (Kind.DISPVM_TAG, Kind.DISPVM_OF, Kind.TAG, Kind.TYPE)


def parse_token(untrusted_text: str, place: Place) -> Token:
    """Return the token of a word that stands at `place`; raises PolicyRefusedError.

    `dom0` and the UUID of zeros are `@adminvm`, so that no rule about dom0 can be written past.
    """
    found = _read(untrusted_text)
    if place not in found.kind.places:
        raise PolicyRefusedError(
            f"{shown(untrusted_text)} cannot stand {_NAMES[place]}, only {_list_places(found.kind)}"
        )
    return found


def _list_places(kind: Kind) -> str:
    return " or ".join(name for place, name in _NAMES.items() if place in kind.places)


def _read(untrusted_text: str) -> Token:
    whole = _WHOLE.get(untrusted_text)
    if whole is not None:
        return token(whole)
    if not untrusted_text.startswith("@"):
        return _read_vm(untrusted_text)
    kind = next((kind for kind in _PREFIXED if untrusted_text.startswith(kind.text)), None)
    if kind is None:
        raise PolicyRefusedError(f"{shown(untrusted_text)} is not known; {_known()}")
    untrusted_value = untrusted_text.removeprefix(kind.text)
    if kind is Kind.DISPVM_OF:
        template = _read_vm(untrusted_value)
        if template is ADMIN:
            raise PolicyRefusedError(f"{shown(untrusted_text)} makes no sense: dom0 is no template")
        return token(kind, template.text)
    return token(kind, _check(Kind.TAG if kind is Kind.DISPVM_TAG else kind, untrusted_value, untrusted_text))


def _read_vm(untrusted_text: str) -> Token:
    """Return the token of a VM by its name or UUID."""
    if untrusted_text == ADMIN_NAME:
        return ADMIN
    if not untrusted_text.startswith(UUID_PREFIX):
        return token(Kind.NAME, _check(Kind.NAME, untrusted_text, untrusted_text))
    uuid = _check(Kind.UUID, untrusted_text.removeprefix(UUID_PREFIX).lower(), untrusted_text)
    return ADMIN if uuid == ADMIN_UUID else token(Kind.UUID, uuid)


def _check(kind: Kind, untrusted_value: str, untrusted_text: str) -> str:
    pattern, reason = _PATTERNS[kind]
    if not pattern.fullmatch(untrusted_value):
        hint = f"; write '@' for the old '$', and {_known()}" if untrusted_text.startswith("$") else ""
        raise PolicyRefusedError(f"{shown(untrusted_text)} is no token: {reason}{hint}")
    return untrusted_value


def _known() -> str:
    words = [kind.text for kind in _WHOLE.values()] + [f"{kind.text}..." for kind in _PREFIXED]
    return f"known are {', '.join(words)}, names and {UUID_PREFIX}..."
