"""All commands by name, for what is made from their declarations: completion, manual pages, docs/tools.md."""

from __future__ import annotations

from importlib import import_module

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Command

COMMANDS = {
    "crannog clipboard": "clipboard:COMMAND",
    "crannog complete": "completion:COMMAND",
    "crannog daemon": "housekeeping:DAEMON",
    "crannog doctor": "doctor:COMMAND",
    "crannog events": "events:COMMAND",
    "crannog kernel": "kernel:COMMAND",
    "crannog policy": "policy:COMMAND",
    "crannog screenshot": "show:SCREENSHOT",
    "crannog services": "services:COMMAND",
    "crannog show": "show:SHOW",
    "crannog storage": "storage:COMMAND",
    "crannog store": "store:COMMAND",
    "crannog template": "template:COMMAND",
    "qubes-prefs": "qubes_prefs:COMMAND",
    "qvm-block": "qvm_device:BLOCK",
    "qvm-check": "qvm_check:COMMAND",
    "qvm-clone": "qvm_clone:COMMAND",
    "qvm-console": "qvm_console:COMMAND",
    "qvm-copy-to-vm": "qvm_copy:COPY",
    "qvm-create": "qvm_create:COMMAND",
    "qvm-device": "qvm_device:COMMAND",
    "qvm-features": "qvm_features:FEATURES",
    "qvm-firewall": "qvm_firewall:COMMAND",
    "qvm-kill": "qvm_stop:KILL",
    "qvm-ls": "qvm_ls:COMMAND",
    "qvm-move-to-vm": "qvm_copy:MOVE",
    "qvm-notes": "qvm_notes:COMMAND",
    "qvm-pause": "qvm_pause:PAUSE",
    "qvm-pci": "qvm_device:PCI",
    "qvm-pool": "qvm_pool:COMMAND",
    "qvm-prefs": "qvm_prefs:COMMAND",
    "qvm-remove": "qvm_remove:COMMAND",
    "qvm-run": "qvm_run:COMMAND",
    "qvm-service": "qvm_features:SERVICE",
    "qvm-shutdown": "qvm_stop:SHUTDOWN",
    "qvm-start": "qvm_start:COMMAND",
    "qvm-tags": "qvm_tags:COMMAND",
    "qvm-unpause": "qvm_pause:UNPAUSE",
    "qvm-usb": "qvm_device:USB",
    "qvm-volume": "qvm_volume:COMMAND",
}
"""Program as typed: module below crannog.cli, and the name of the declaration in it."""


def find_command(program: str) -> Command | None:
    """Return the declaration of a program such as `qvm-ls` or `crannog store`, or None."""
    place = COMMANDS.get(program)
    if place is None:
        return None
    module, name = place.split(":")
    command: Command = getattr(import_module(f"crannog.cli.{module}"), name)
    return command
