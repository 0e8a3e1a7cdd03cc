"""The firewall rules of VMs: checked, saved, and then told (Admin API, section 8)."""

import time
from collections.abc import Callable

from crannog.core import events
from crannog.core.firewall import DEFAULT_RULES, Rule, format_rules, parse_rules
from crannog.core.vms import LocalVM
from crannog.editing.editor import Editor
from crannog.errors import StorageError, ValueRefusedError

CHANGED = "firewall-changed"
"""The event that has whoever enforces rules read them anew."""


class Firewall:
    """Reads and changes the rules of one registry's VMs. `clock` returns seconds since the epoch."""

    def __init__(self, editor: Editor, clock: Callable[[], float] = time.time) -> None:
        self._editor = editor
        self._clock = clock

    def rules(self, vm: LocalVM) -> tuple[Rule, ...]:
        """Return the rules that count now; a VM that was never given any has the default.

        Raises StorageError when what is kept cannot be read: no rules would mean something else.
        """
        text = self._editor.firewall(vm)
        if text is None:
            return DEFAULT_RULES
        try:
            kept = parse_rules(text)
        except ValueRefusedError as error:
            raise StorageError(
                f"the kept firewall rules of {vm.name} cannot be used: {error}; set them anew"
            ) from error
        now = self._clock()
        return tuple(rule for rule in kept if not rule.is_expired(now))

    def set_rules(self, vm: LocalVM, untrusted_text: str) -> None:
        """Keep other rules, in one form whatever form they came in; raises ValueRefusedError or StorageError."""
        rules = parse_rules(untrusted_text)
        self._editor.set_firewall(vm, format_rules(rules))
        self.reload(vm)

    def reload(self, vm: LocalVM) -> None:
        """Have the rules applied anew, for instance because a DNS name means another address now."""
        self._editor.tell(events.plain(vm.name, CHANGED))
