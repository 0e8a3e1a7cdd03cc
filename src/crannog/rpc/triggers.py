"""Services that a guest asks for, cut out of its bytes and made harmless (qrexec protocol, "Flows"). Pure: no I/O."""

import re
from typing import NamedTuple

from crannog.errors import ProtocolError
from crannog.rpc.frames import TRIGGER_PARAMS

SERVICE_MAX = 65000
"""Longest service with its argument, in bytes, with the NUL at its end."""

_IDENT = re.compile(rb"[A-Za-z0-9_. -]+\0+")
_ODD_IN_NAME = re.compile(rb"[^A-Za-z0-9_.@:-]")
_ODD_IN_SERVICE = re.compile(rb"[^A-Za-z0-9_.@:+-]")


class Trigger(NamedTuple):
    """One wish of a guest: `service` has `+` and an argument, `ident` is what the guest knows the wish by."""

    ident: bytes
    target: str
    service: str
    source: str = ""
    """Whom the guest says it speaks for, as the relay of a RemoteVM; else empty."""

    @property
    def is_possible(self) -> bool:
        """Whether there can be such a service at all; the policy need not be asked for others."""
        return not self.service.startswith("+")


def parse_trigger(untrusted_body: bytes) -> Trigger:
    """Return the wish in the body of TRIGGER_SERVICE4.

    Characters that no name has become `_`, as qrexec does it. Raises ProtocolError where nobody could be answered.
    """
    if len(untrusted_body) < TRIGGER_PARAMS.size:
        raise ProtocolError("the guest asked for a service with too few bytes")
    untrusted_source, untrusted_target, untrusted_ident = TRIGGER_PARAMS.unpack_from(untrusted_body)
    untrusted_service, end, rest = untrusted_body[TRIGGER_PARAMS.size :].partition(b"\0")
    if not _IDENT.fullmatch(untrusted_ident):
        raise ProtocolError("the guest asked for a service with an ident that is none")
    if not end or rest or len(untrusted_service) >= SERVICE_MAX:
        raise ProtocolError("the guest asked for a service whose name has no end, or is too long")
    service = _clean(untrusted_service, _ODD_IN_SERVICE)
    return Trigger(
        ident=untrusted_ident,
        target=_clean(untrusted_target.partition(b"\0")[0], _ODD_IN_NAME),
        service=service if "+" in service else f"{service}+",
        source=_clean(untrusted_source.partition(b"\0")[0], _ODD_IN_NAME),
    )


def _clean(untrusted_text: bytes, odd: re.Pattern[bytes]) -> str:
    return odd.sub(b"_", untrusted_text).decode("ascii")
