"""Where pictures of a VM come from: its emulated screen, from the hypervisor; its windows, from its GUI agent.

A guest sends plain pixels, which are measured, and made a PNG here: no decoder of this host, and no viewer of the
user's, reads anything else of it.
"""

from __future__ import annotations

from crannog.cli.guest_service import MISSING, Service
from crannog.cli.picture import as_png, encode
from crannog.cli.qvm_run import reach
from crannog.client.connection import Client
from crannog.errors import CrannogError, DisplayError, FeatureNotFoundError, ValueRefusedError

BYTES_MAX = 64 << 20
"""Largest picture of windows: 22 million pixels."""
PATIENCE = 75.0
"""Seconds for a guest to take a picture and send it: its xpra is given 45, and an emulated one starts Python first."""
SERVICE = Service("crannog.Screenshot", "a picture of its windows", BYTES_MAX, PATIENCE)
_NOTHING = 3
"""The service's exit code when no window is there."""


def take_picture(client: Client, vm: str) -> bytes:
    """Return a picture of a VM's windows when it has some, else of its screen, as PNG. Raises CrannogError."""
    if not _has_gui_agent(client, vm):
        return take_screen(client, vm)
    try:
        return take_windows(client, vm)
    except CrannogError as no_windows:
        try:
            return take_screen(client, vm)
        except DisplayError:
            raise no_windows from None


def take_screen(client: Client, vm: str) -> bytes:
    """Return a picture of a VM's emulated screen as PNG. Raises DisplayError when it has none, CrannogError."""
    return as_png(client.call("crannog.vm.Screenshot", vm))


def take_windows(client: Client, vm: str) -> bytes:
    """Return a picture of a VM's windows, where they are on its desktop, as PNG.

    Raises DisplayError when there are none, ValueRefusedError for what is no picture, CrannogError.
    """
    code, untrusted_data = SERVICE.call(reach(client, vm, may_start=False), vm)
    if code == _NOTHING:
        raise DisplayError(f"{vm} shows no window; start a program in it, or take its screen with --screen")
    if code == MISSING and not _has_gui_agent(client, vm):
        raise DisplayError(f"{vm} has no windows: it has no GUI agent; take its screen with --screen")
    if code:
        raise SERVICE.explain(vm, code, untrusted_data)
    try:
        return encode(untrusted_data)
    except ValueRefusedError as error:
        raise ValueRefusedError(f"what {vm} sent is no picture of its windows: {error}") from None


def _has_gui_agent(client: Client, vm: str) -> bool:
    try:
        return client.text("admin.vm.feature.CheckWithTemplate", vm, "gui") == "1"
    except FeatureNotFoundError:
        return False
