"""Orders to agents of guests that are saved and restored: told once, and over when the agent says so."""

import asyncio

import pytest

from crannog.core.announcement import AgentState, AgentStatus, Announcement, parse_announcement
from crannog.core.guestdb import RENEW, SLEEP, is_entry
from crannog.errors import ProtocolError, RpcError
from crannog.rpc import renewal
from crannog.rpc.renewal import Renewal

UUID, NAME = "0f8fad5b-d9cb-469f-a165-70867728950e", "disp7"
FACTS = {b"version": b"1", b"os": b"Linux", b"qrexec": b"1", b"gui": b"0"}


class Guest:
    """What the agent of one VM hears, and what it says it is."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.status: AgentStatus | None = AgentStatus(AgentState.READY)
        self.renewal = Renewal(self._hear, lambda _uuid: self.status, lambda: 1234, lambda size: b"\xab" * size)

    def _hear(self, uuid: str, path: str, value: bytes) -> None:
        assert uuid == UUID
        self.heard.append((path, value))

    def say(self, word: str) -> None:
        self.status = AgentStatus(AgentState.READY, Announcement("1", "Linux", True, False, "", word))
        self.renewal.note_status(UUID, self.status)


async def soon(guest: Guest, work: "asyncio.Future[None]") -> None:
    """Let the work come to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not work.done()
    assert guest.heard


async def test_an_agent_is_told_to_sleep_once_and_waited_for() -> None:
    guest = Guest()
    work = asyncio.ensure_future(guest.renewal.put_to_sleep(UUID))
    await soon(guest, work)
    assert guest.heard == [(SLEEP, b"1")]
    guest.say("1")
    await soon(guest, work)
    guest.say("asleep")
    await work


async def test_an_order_is_over_when_the_agent_says_its_number() -> None:
    guest = Guest()
    guest.say("asleep")
    work = asyncio.ensure_future(guest.renewal.renew(UUID, NAME, 10))
    await soon(guest, work)
    ((path, value),) = guest.heard
    assert path == RENEW
    assert is_entry(path, value)  # it fits into the guest DB
    number, *rest = value.decode().split(" ")
    assert rest == [UUID, NAME, "1234", "ab" * renewal.SEED_SIZE]
    for word in ("1", "asleep", number[:-1]):
        guest.say(word)
        await soon(guest, work)
    guest.say(number)
    await work


async def test_no_two_orders_have_a_number_or_a_seed_in_common() -> None:
    guest = Guest()
    guest.renewal = Renewal(guest._hear, lambda _uuid: guest.status)
    for _ in range(2):
        with pytest.raises(RpcError):
            await guest.renewal.renew(UUID, NAME, 0.01)
    one, other = (value.split(b" ") for _, value in guest.heard)
    assert one[0] != other[0]
    assert one[4] != other[4]
    assert len(one[4]) == 2 * renewal.SEED_SIZE


@pytest.mark.parametrize("status", [None, AgentStatus(), AgentStatus(AgentState.READY)])
async def test_an_agent_that_does_not_answer_is_told_of(status: AgentStatus | None) -> None:
    guest = Guest()
    guest.status = status
    with pytest.raises(RpcError, match=r"has not given it an identity of its own within 0 s"):
        await guest.renewal.renew(UUID, NAME, 0.05)


def announce(**more: bytes) -> Announcement:
    facts = FACTS | {name.encode(): value for name, value in more.items()}
    return parse_announcement({b"/qubes-tools/" + name: value for name, value in facts.items()})


@pytest.mark.parametrize("word", ["", "1", "asleep", "0f8fad5bd9cb469fa16570867728950e"])
def test_what_an_agent_says_of_it_comes_through(word: str) -> None:
    found = announce(renewal=word.encode()) if word else announce()
    assert found.renewal == word
    status = AgentStatus(AgentState.READY, found)
    assert AgentStatus.parse(status.encode()) == status


@pytest.mark.parametrize("word", [b" ", b"a b", b"x" * 33, b"\xff", b"../..", b"1\n"])
def test_nonsense_is_refused(word: bytes) -> None:
    with pytest.raises(ProtocolError, match="renewal"):
        announce(renewal=word)


def test_a_process_of_an_older_crannogd_knows_nothing_of_it() -> None:
    line = b'{"agent":"ready","announced":{"version":"1","os":"L","qrexec":true,"gui":false,"default_user":""}}\n'
    found = AgentStatus.parse(line)
    assert found.announced
    assert found.announced.renewal == ""
