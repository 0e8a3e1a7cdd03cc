"""What differs in the RPC process of a VM on Xen: what its guest writes to XenStore, and the short padding."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.guestdb.host import XenStoreHost
from crannog.adapters.guestdb.tree import domain_folder
from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.guestdb import GUEST_ENTRIES_MAX
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel
from crannog.rpc.frames import FrameParser, Marker
from crannog.rpc.xen_guest import PAD_WAIT, XenGuest
from tests.xenstore_fake import Store, serving

GUEST = 5
FACTS = {"version": "1", "os": "Windows", "qrexec": "1", "gui": "0", "default-user": "user"}
ANNOUNCED = Announcement("1", "Windows", qrexec=True, gui=False, default_user="user")


class World:
    """A guest of Xen and its channel; time is the test's."""

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        store.add_domain(GUEST)
        XenStoreHost(lambda: path).prepare(GUEST)
        self.log: list[str] = []
        self.statuses: list[AgentStatus] = []
        self.channel = GuestChannel("work", self.log.append, frames.SHORT_PADDING)
        self.channel.on_status = self.statuses.append
        self.xen = XenGuest(self.channel, path, self.log.append)
        self.now = 100.0

    def write(self, entries: dict[str, str], folder: str = "qubes-tools") -> None:
        """Write as the guest does."""
        for name, value in entries.items():
            self.store.write(GUEST, f"{domain_folder(GUEST)}/{folder}/{name}", value.encode())

    def turn(self) -> None:
        """Have all that was changed noticed, and looked at."""
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:  # what a stand-in's threads send comes within that
            for fd, _, part in self.xen.wants():
                part.serve(fd)
            time.sleep(0.01)
        for _ in range(2):
            self.xen.advance(self.now)
            self.now += 0.2

    def synchronise(self, *, announces: bool = False) -> None:
        """Be an agent that comes."""
        nonce = os.urandom(8)
        self.channel.receive(frames.encode_marker(Marker(b"R", nonce, bytes(8))))
        parser = FrameParser()
        parser.feed(bytes(self.channel.out))
        marker = parser.next_marker()
        assert marker
        assert marker.kind == b"S"
        self.channel.receive(frames.encode_marker(Marker(b"A", nonce, marker.host_nonce)))
        self.channel.receive(frames.encode_frame(0, frames.HELLO, frames.NUMBER.pack(4)))
        for name, value in ({**FACTS, "os": "Linux"} if announces else {}).items():
            body = f"/qubes-tools/{name}\0{value}".encode()
            self.channel.receive(frames.encode_frame(0, frames.GUESTDB_WRITE, body))
        if announces:
            self.channel.receive(frames.encode_frame(0, frames.TRIGGER, b"qubes.NotifyTools"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with serving(tmp_path) as (store, path):
        world = World(store, path)
        yield world
        world.xen.close()


def test_a_guest_without_our_agent_announces_itself(world: World) -> None:
    world.xen.attach(GUEST)
    world.turn()
    assert world.statuses == []
    world.write(FACTS)
    world.turn()
    assert world.statuses == [AgentStatus(AgentState.WAITING, ANNOUNCED)]
    world.write({"os": "ReactOS"})
    world.turn()
    assert world.statuses[-1].announced == ANNOUNCED._replace(os="ReactOS")
    assert world.log == []


def test_what_was_announced_before_is_found(world: World) -> None:
    world.write(FACTS)
    world.xen.attach(GUEST)
    world.turn()
    assert world.statuses == [AgentStatus(AgentState.WAITING, ANNOUNCED)]


def test_nonsense_changes_nothing(world: World) -> None:
    world.write(FACTS)
    world.xen.attach(GUEST)
    world.turn()
    world.write({"gui": "perhaps"})
    world.turn()
    assert world.statuses == [AgentStatus(AgentState.WAITING, ANNOUNCED)]
    assert "refused the announcement, nothing is changed" in world.log[-1]
    world.write({f"{number:05}": "x" for number in range(GUEST_ENTRIES_MAX + 1)})
    world.turn()
    assert "refused what the guest has in XenStore" in world.log[-1]
    assert len(world.statuses) == 1


def test_the_agent_says_more_than_xenstore_and_what_is_there_outlives_it(world: World) -> None:
    world.write(FACTS)
    world.xen.attach(GUEST)
    world.turn()
    world.synchronise(announces=True)
    assert world.statuses[-1] == AgentStatus(AgentState.READY, ANNOUNCED._replace(os="Linux"))
    world.channel.receive(bytes(100))
    assert world.statuses[-1] == AgentStatus(AgentState.WAITING, ANNOUNCED)


def test_features_that_are_asked_for_in_xenstore_are_in_the_guest_db(world: World) -> None:
    world.xen.attach(GUEST)
    world.write({"qrexec": "1"}, "features-request")
    world.turn()
    assert dict(world.channel.tree.db.list("/features-request/")) == {"/features-request/qrexec": b"1"}
    world.store.remove(GUEST, f"{domain_folder(GUEST)}/features-request/qrexec")
    world.turn()
    assert dict(world.channel.tree.db.list("/features-request/")) == {}


def test_what_the_host_says_is_in_xenstore_before_and_after_the_number_is_known(world: World) -> None:
    folder = domain_folder(GUEST)
    world.channel.tree.db.write("/qubes-vm-type", b"AppVM")
    world.channel.tree.db.write("/name", b"work")  # Xen has that by itself
    world.channel.tree.db.write("/qubes-service/a.b", b"1")  # no name of XenStore's
    world.xen.attach(GUEST)
    world.channel.tree.db.write("/qubes-service/cups", b"1")
    assert world.store.read(GUEST, f"{folder}/qubes-vm-type") == b"AppVM"
    assert world.store.read(GUEST, f"{folder}/qubes-service/cups") == b"1"
    assert world.store.read(GUEST, f"{folder}/name") == b"vm"
    world.channel.tree.db.remove("/qubes-service/cups")
    assert f"{folder}/qubes-service/cups" not in world.store.values
    assert world.log == []


def test_another_domain_is_another_folder(world: World) -> None:
    world.xen.attach(GUEST)
    world.turn()
    world.store.add_domain(6)
    world.xen.attach(6)
    world.write(FACTS)
    world.turn()
    assert world.statuses == []


def test_a_xenstore_that_is_not_there_is_done_without(tmp_path: Path) -> None:
    log: list[str] = []
    channel = GuestChannel("work", log.append)
    xen = XenGuest(channel, str(tmp_path / "nothing"), log.append)
    xen.attach(GUEST)
    channel.tree.db.write("/a", b"1")
    xen.advance(0.0)
    xen.advance(1.0)
    assert (list(xen.wants()), len(log)) == ([], 1)
    assert "is not heard through XenStore any more" in log[0]


# -- the padding


def test_an_agent_that_does_not_ask_gets_the_long_padding_once(world: World) -> None:
    assert bytes(world.channel.out) == frames.SHORT_PADDING
    world.channel.out.clear()
    world.xen.advance(0.0)
    assert world.xen.due(0.0) == PAD_WAIT
    world.xen.advance(PAD_WAIT - 0.1)
    assert not world.channel.out
    world.xen.advance(PAD_WAIT)
    assert bytes(world.channel.out) == frames.PADDING
    world.channel.out.clear()
    world.xen.advance(2 * PAD_WAIT)
    world.xen.advance(9 * PAD_WAIT)
    assert not world.channel.out


def test_an_agent_that_asks_is_answered_before_any_padding(world: World) -> None:
    world.xen.advance(0.0)
    world.xen.advance(PAD_WAIT)
    assert len(world.channel.out) > len(frames.PADDING)
    world.channel.receive(frames.encode_marker(Marker(b"R", b"12345678", bytes(8))))
    assert len(world.channel.out) == frames.MARKER_SIZE
    world.xen.advance(9.0)
    world.xen.advance(19.0)
    assert len(world.channel.out) == frames.MARKER_SIZE
    assert world.xen.due(20.0) is None


def test_an_agent_that_was_lost_gets_the_short_padding_first(world: World) -> None:
    world.xen.advance(0.0)
    world.xen.advance(PAD_WAIT)
    world.synchronise()
    world.channel.out.clear()
    world.channel.receive(bytes(100))
    assert bytes(world.channel.out) == frames.SHORT_PADDING
    world.xen.advance(50.0)
    world.xen.advance(50.0 + PAD_WAIT)
    assert bytes(world.channel.out) == frames.SHORT_PADDING + frames.PADDING


def test_any_long_frame_that_was_half_sent_is_completed_by_the_long_padding() -> None:
    from crannog.guest import agent as agent_module

    parser = agent_module.Parser()
    half = frames.encode_frame(0, frames.GUESTDB_WRITE, b"x" * frames.BODY_MAX)[: frames.HEADER.size + 1]
    rest = memoryview(half + frames.SHORT_PADDING)
    frame, rest = parser.cut(rest)
    assert frame is None, "the short one is not enough for it"
    frame, rest = parser.cut(memoryview(frames.PADDING))
    assert frame, "it is complete"
    with pytest.raises(agent_module.BadFrame):
        parser.cut(rest)
