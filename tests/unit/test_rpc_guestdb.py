"""The guest DB between the daemon's link, the real RPC process and a peer that plays the guest."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.errors import RpcError
from crannog.rpc import frames
from crannog.rpc.link import RpcLink
from tests.unit.guest_peer import SECONDS, GuestPeer, guest_peer

WRITE, REMOVE = frames.GUESTDB_WRITE, frames.GUESTDB_REMOVE


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[GuestPeer]:
    (tmp_path / "log").mkdir()
    with guest_peer(tmp_path) as peer:
        yield peer


async def listed(link: RpcLink, prefix: str, wanted: dict[str, bytes]) -> None:
    """Expect that soon the process has just these entries."""
    for _ in range(SECONDS * 100):
        if await link.list_entries(prefix) == wanted:
            return
        await asyncio.sleep(0.01)
    assert await link.list_entries(prefix) == wanted


async def test_entries_of_both_sides(peer: GuestPeer) -> None:
    async with RpcLink(peer.listen_path) as link:
        link.write_entry("/name", b"work")
        link.write_entry("/gone", b"")
        link.write_entry("/gone", None)
        peer.send(0, WRITE, b"/features-request/gui\0" + b"1")
        peer.send(0, WRITE, b"/name\0evil")
        await listed(link, "/", {"/features-request/gui": b"1", "/name": b"work"})
        await listed(link, "/features-request/", {"/features-request/gui": b"1"})


async def test_a_guest_that_comes_is_told(peer: GuestPeer) -> None:
    async with RpcLink(peer.listen_path) as link:
        link.write_entry("/name", b"work")
        await listed(link, "/", {"/name": b"work"})
        peer.send(0, frames.HELLO, frames.NUMBER.pack(3))
        assert peer.next_frame() == (0, WRITE, b"/name\0work")
        assert peer.next_frame() == (0, frames.GUESTDB_READY, b"")
        link.write_entry("/name", b"play")
        assert peer.next_frame() == (0, WRITE, b"/name\0play")
        link.write_entry("/name", None)
        assert peer.next_frame() == (0, REMOVE, b"/name")


async def test_a_vm_without_a_process(tmp_path: Path) -> None:
    with pytest.raises(RpcError):
        await RpcLink(str(tmp_path / "nothing")).list_entries("/", timeout=0.1)
    RpcLink(str(tmp_path / "nothing")).write_entry("/a", b"")  # nobody to tell


async def test_many_large_entries(peer: GuestPeer) -> None:
    async with RpcLink(peer.listen_path) as link:
        wanted = {f"/x/{number}": b"%d" % number * 700 for number in range(500)}
        for path, value in wanted.items():
            link.write_entry(path, value)
        await listed(link, "/x/", wanted)
