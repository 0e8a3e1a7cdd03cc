"""A guest of each mode, as the tests of one module share it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from crannog.adapters.guestdb.tree import domain_folder
from crannog.client.events import EventStream
from crannog.errors import CrannogError
from crannog.images.digest import digest_sparse
from tests.xen.home import MEMORY, TEMPLATES, XenHome, list_remains

MODES = ("pv", "pvh", "hvm")
Note = Callable[[str, object], None]
OWN_XENSTORE = "import sys; sys.path.insert(0, '/usr/lib/crannog'); import agent; s = agent.XenStore(); "
"""For the guest's Python: the agent's end of XenStore, as any program of the guest's root could use it."""


@dataclass
class Guest:
    """One AppVM, and what there was before its first start."""

    home: XenHome
    mode: str
    before: dict[str, list[str]] = field(default_factory=dict)
    digest: str = ""
    """Of its template's root."""

    @property
    def name(self) -> str:
        """The VM's name."""
        return f"test-{self.mode}"

    @property
    def template(self) -> str:
        """The name of its template."""
        return TEMPLATES[self.mode]

    @property
    def folder(self) -> str:
        """Its folder in XenStore."""
        return domain_folder(int(self.prop("xid")))

    def create(self) -> None:
        """Make it, and note what there is."""
        # Any mode that can grow would do; to let one is no boot more.
        growth = {"maxmem": 2 * MEMORY} if self.mode == "pvh" else {}
        self.home.create(self.name, self.mode, **growth)
        self.digest, self.before = self.digest_template(), list_remains()

    def start(self) -> float:
        """Start it, and return after how many seconds its agent answered."""
        began = time.monotonic()
        self.home.start(self.name)
        return time.monotonic() - began

    def digest_template(self) -> str:
        """Return the checksum of its template's root."""
        return digest_sparse(self.home.image(self.template, "root"))

    def run(self, command: str) -> str:
        """Run a command as the guest's root through the agent, and return its output; it must succeed."""
        return self.home.in_guest(self.name, command)

    def as_guest(self, python: str) -> str:
        """Run a line of Python with XenStore `s` as the guest's root; return its output, or the error's last line."""
        return self.run(f'python3 -ISc "{OWN_XENSTORE}{python}" 2>&1 || true').strip().rpartition("\n")[2]

    def prop(self, name: str) -> str:
        """Return a property."""
        return self.home.call("admin.vm.property.Get", self.name, name).split(" ", 2)[2]

    def feature(self, name: str) -> str:
        """Return a feature, its own or its template's, `(none)` without it."""
        try:
            return self.home.call("admin.vm.feature.CheckWithTemplate", self.name, name)
        except CrannogError:
            return "(none)"

    def rpc_process(self) -> int:
        """Return the number of its RPC process, 0 when there is none just now."""
        try:
            return self.home.rpc_process(self.name)
        except AssertionError:
            return 0


def refused(home: XenHome, vm: str) -> str:
    """Return why a VM is not started."""
    with pytest.raises(CrannogError) as caught:
        home.call("crannog.vm.Start", vm, "nowait")
    return str(caught.value)


def read_events(stream: EventStream, vm: str, last: str) -> list[str]:
    """Return the names of a VM's events up to the one called `last`, and close the stream."""
    found: list[str] = []
    deadline = time.monotonic() + 60
    while last not in found and (event := stream.next_event(deadline)):
        if event.subject == vm:
            found.append(event.name)
    stream.close()
    return found


def assert_in_order(events: list[str], *wanted: str) -> None:
    """Check that the wanted events are among those told, in that order."""
    rest = iter(events)
    for event in wanted:
        assert event in rest, f"{event} is not among {events}, or in another order"
