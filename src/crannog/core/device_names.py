"""Which device: its class, its backend, its port there and what it says of itself (Admin API, section 7)."""

import re
from dataclasses import dataclass
from enum import StrEnum

from crannog.errors import ProtocolError, ValueRefusedError

ANY = "*"
"""In the place of a port or of a device's id: whichever it is."""

UNIDENTIFIED = "0000:0000::?******"
"""The id of a device that says nothing of itself."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_IDENT = re.compile(r"[A-Za-z0-9_.:?*@~-]{1,512}")
_CODE_LENGTH = 7
_CODE = re.compile(r"[pub?m][0-9a-f*]{6}", re.IGNORECASE)
_CODE_IN_QARG = re.compile(r"[pubm_][0-9a-f_]{6}", re.IGNORECASE)
_TO_QARG = str.maketrans({":": "+", "*": "_", "?": "_"})


class Mode(StrEnum):
    """When an assigned device goes to its VM."""

    MANUAL = "manual"
    ASK = "ask-to-attach"
    AUTO = "auto-attach"
    REQUIRED = "required"


DEVCLASSES: dict[str, tuple[Mode, ...]] = {
    "pci": (Mode.REQUIRED,),
    "block": (Mode.ASK, Mode.AUTO, Mode.REQUIRED),
    "usb": (Mode.ASK, Mode.AUTO),
    "mic": (Mode.ASK, Mode.AUTO),
}
"""The classes in the order in which they are listed, with the modes that an assignment of the class can have."""


@dataclass(frozen=True)
class DeviceName:
    """A device of one class. `port` or `ident` may be ANY, but not both."""

    backend: str
    port: str
    ident: str = ANY

    def __str__(self) -> str:
        return f"{self.backend}:{self.port}:{self.ident}"

    @property
    def head(self) -> str:
        """How a line about an assignment begins."""
        return f"{self.backend}+{self.port}:{self.ident}"

    @property
    def qarg(self) -> str:
        """The device as the argument of a service, which can hold neither `:` nor `*` nor `?`."""
        return "+".join(part.translate(_TO_QARG) for part in (self.backend, self.port, self.ident))


def parse_qarg(untrusted_argument: str) -> DeviceName:
    """Return the device that an argument `BACKEND+PORT+DEVICEID` or `BACKEND+PORT` means; raises ProtocolError.

    `_` alone means ANY. In the last part of an id, which holds interface codes, `_` stands for `*`, and at the
    beginning of a code for `?`; in the other parts it is itself. So an id comes back as it was.
    """
    backend, _, untrusted_rest = untrusted_argument.partition("+")
    untrusted_port, separator, untrusted_ident = untrusted_rest.partition("+")
    port = ANY if untrusted_port == "_" else untrusted_port
    ident = _parse_ident(untrusted_ident) if separator else ANY
    is_formed = _NAME.fullmatch(backend) and (port == ANY or _NAME.fullmatch(port)) and _IDENT.fullmatch(ident)
    if not is_formed:
        raise ProtocolError(f"'{untrusted_argument[:80]}' names no device; it is BACKEND+PORT or BACKEND+PORT+DEVICEID")
    if port == ANY and ident == ANY:
        raise ProtocolError(f"'{untrusted_argument[:80]}' names neither a port nor a device")
    return DeviceName(backend, port, ident)


def parse_port_argument(untrusted_argument: str) -> str:
    """Return the port that an argument is; raises ProtocolError."""
    if not _NAME.fullmatch(untrusted_argument):
        raise ProtocolError(f"'{untrusted_argument[:80]}' is no port of a device")
    return untrusted_argument


def _parse_ident(untrusted_text: str) -> str:
    if untrusted_text == "_":
        return ANY
    begin, separator, codes = untrusted_text.replace("+", ":").rpartition(":")
    return begin + separator + "".join(_parse_codes_in_qarg(codes))


def _parse_codes_in_qarg(text: str) -> list[str]:
    """Return the interface codes that a text holds, or the text as it is when it holds something else."""
    codes = split_codes(text)
    if not all(_CODE_IN_QARG.fullmatch(code) for code in codes):
        return [text]
    return [("?" if code[0] == "_" else code[0]) + code[1:].replace("_", "*") for code in codes]


def parse_codes(untrusted_text: str) -> list[str]:
    """Return the interface codes of a text that holds them one after the other.

    Raises ProtocolError for anything else, ValueRefusedError when one is there twice.
    """
    codes = split_codes(untrusted_text)
    wrong = next((code for code in codes if not is_code(code)), None)
    if wrong is not None:
        raise ProtocolError(f"'{wrong[:20]}' is no interface code; it is one of p u b m ? and six of 0-9 a-f *")
    if len(set(codes)) < len(codes):
        raise ValueRefusedError("an interface code is there twice")
    return codes


def is_code(text: str) -> bool:
    """Tell whether a text is an interface code."""
    return _CODE.fullmatch(text) is not None


def split_codes(text: str) -> list[str]:
    """Return the pieces of a text that are its interface codes if it holds nothing else."""
    return [text[at : at + _CODE_LENGTH] for at in range(0, len(text), _CODE_LENGTH)]
