"""The clipboards of VMs: what a VM answers is believed when it is text."""

from __future__ import annotations

from crannog.cli.guest_service import Service
from crannog.errors import ValueRefusedError

BYTES_MAX = 65536
"""Longest text, in bytes of UTF-8."""
PATIENCE = 20.0
"""Seconds for a VM to answer; its service waits for its own display for 5."""
COPY, PASTE = "qubes.ClipboardCopy", "qubes.ClipboardPaste"


def fetch_text(socket: str, vm: str) -> bytes:
    """Return the text in the clipboard of the VM whose RPC process serves `socket`, as UTF-8.

    Raises CrannogError with what the VM says when there is none, ValueRefusedError for what is no text that is
    taken, RpcError when the VM cannot be asked.
    """
    return check_text(vm, _call(socket, vm, "DEFAULT", COPY, b""))


def deliver_text(socket: str, vm: str, user: str, text: bytes) -> None:
    """Put a text into the clipboard of a VM's session; raises CrannogError and RpcError as `fetch_text` does."""
    _call(socket, vm, user, PASTE, text)


def check_text(vm: str, untrusted_data: bytes) -> bytes:
    """Return the data when they are text: UTF-8, neither empty nor too long, without NUL. Raises ValueRefusedError."""
    if not untrusted_data:
        raise ValueRefusedError(f"{vm} has no text in its clipboard; copy some there first")
    if len(untrusted_data) > BYTES_MAX:
        raise ValueRefusedError(
            f"the clipboard of {vm} holds more than {BYTES_MAX} bytes; copy less, or a file with qvm-copy"
        )
    try:
        untrusted_data.decode()
    except UnicodeDecodeError:
        raise ValueRefusedError(f"what {vm} has in its clipboard is not UTF-8 text; copy text there") from None
    if b"\0" in untrusted_data:
        raise ValueRefusedError(f"the text in the clipboard of {vm} has NUL characters; copy other text there")
    return untrusted_data


def _call(socket: str, vm: str, user: str, name: str, data: bytes) -> bytes:
    """Call a service of the VM; return what it printed when it ended with 0, not checked."""
    service = Service(name, "its clipboard", BYTES_MAX, PATIENCE)
    code, untrusted_data = service.call(socket, vm, user, data)
    if code:
        raise service.explain(vm, code, untrusted_data)
    return untrusted_data
