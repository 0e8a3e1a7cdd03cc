"""XenStore's adapter: messages, what a guest may do there, what a hostile one does, and hosts that have none."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.adapters.guestdb.host import XenStoreHost
from crannog.adapters.guestdb.places import find_xenstore
from crannog.adapters.guestdb.tree import XenStoreTree, domain_folder, prepare
from crannog.adapters.guestdb.wire import BODY_MAX, HEADER, Kind, Message, Parser, encode
from crannog.adapters.guestdb.xenstore import RefusedError, XenStore
from crannog.core.guestdb import GUEST_ENTRIES_MAX
from crannog.errors import HypervisorError, ProtocolError
from tests.xenstore_fake import Refusal, Store, serving

GUEST = 5


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Store, str]]:
    with serving(tmp_path) as (store, path):
        store.add_domain(GUEST)
        yield store, path


@pytest.fixture
def xenstore(served: tuple[Store, str]) -> Iterator[XenStore]:
    connection = XenStore(served[1])
    prepare(connection, GUEST)
    yield connection
    connection.close()


# -- messages


@given(st.lists(st.builds(Message, *[st.integers(0, 2**32 - 1)] * 3, st.binary(max_size=99))), st.integers(1, 40))
def test_messages_come_out_however_they_are_cut(messages: list[Message], size: int) -> None:
    data = b"".join(map(encode, messages))
    parser = Parser()
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    assert [message for part in parts for message in parser.feed(part)] == messages


def test_no_message_is_longer_than_xenstores() -> None:
    with pytest.raises(ProtocolError, match="4096 are allowed"):
        encode(Message(Kind.WRITE, 1, 0, bytes(BODY_MAX + 1)))
    with pytest.raises(ProtocolError, match="4097 bytes"):
        list(Parser().feed(HEADER.pack(Kind.READ, 1, 0, BODY_MAX + 1)))


def test_an_answer_that_is_no_message_ends_the_connection(tmp_path: Path) -> None:
    with answering(tmp_path, HEADER.pack(Kind.READ, 1, 0, 2**31)) as path:
        connection = XenStore(path)
        with pytest.raises(HypervisorError, match="cannot be read"):
            connection.read("/a")
        connection.close()


def test_a_xenstore_that_has_gone(tmp_path: Path) -> None:
    with answering(tmp_path, b"") as path:
        connection = XenStore(path)
        with pytest.raises(HypervisorError, match="has gone"):
            connection.read("/a")
        connection.close()


def test_a_xenstore_that_says_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crannog.adapters.guestdb.xenstore.PATIENCE", 0.05)
    late = encode(Message(Kind.READ, 7, 0, b"the answer to another question"))
    with answering(tmp_path, late, stays=True) as path:
        connection = XenStore(path)
        with pytest.raises(HypervisorError, match="did not answer"):
            connection.read("/a")
        connection.close()


class answering:  # noqa: N801 - a context manager
    """A server that reads one question and says `data`, whatever it was asked."""

    def __init__(self, folder: Path, data: bytes, *, stays: bool = False) -> None:
        self.path = str(folder / "xs")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.data, self.stays = data, stays
        self.kept: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        connection.recv(4096)
        connection.sendall(self.data)
        self.kept.append(connection)
        if not self.stays:
            connection.close()

    def __enter__(self) -> str:
        self.thread.start()
        return self.path

    def __exit__(self, *_: object) -> None:
        self.thread.join(10)
        for connection in (*self.kept, self.listener):
            connection.close()


# -- what a guest may do


def test_a_guest_may_write_in_its_two_folders_alone(served: tuple[Store, str], xenstore: XenStore) -> None:
    store, _ = served
    folder = domain_folder(GUEST)
    tree = XenStoreTree(xenstore, GUEST)
    tree.write("/qubes-vm-type", b"AppVM")
    store.write(GUEST, f"{folder}/qubes-tools/os", b"Linux")
    store.write(GUEST, f"{folder}/features-request/a", b"1")
    assert store.read(GUEST, f"{folder}/qubes-vm-type") == b"AppVM"
    for path in ("/qubes-vm-type", "/qubes-tool", "/new", "/name"):
        with pytest.raises(Refusal, match="EACCES"):
            store.write(GUEST, folder + path, b"lie")
    with pytest.raises(Refusal, match="EACCES"):
        store.remove(GUEST, f"{folder}/qubes-vm-type")
    assert dict(tree.list()) == {
        "/qubes-vm-type": b"AppVM",
        "/qubes-tools/os": b"Linux",
        "/features-request/a": b"1",
    }


def test_no_other_guest_may_look(served: tuple[Store, str], xenstore: XenStore) -> None:
    store, _ = served
    store.add_domain(6)
    XenStoreTree(xenstore, GUEST).write("/qubes-random-seed", b"secret")
    for path in ("qubes-random-seed", "qubes-tools"):
        with pytest.raises(Refusal, match="EACCES"):
            store.read(6, f"{domain_folder(GUEST)}/{path}")


def test_what_is_xens_is_no_entry_and_is_not_touched(served: tuple[Store, str], xenstore: XenStore) -> None:
    store, _ = served
    tree = XenStoreTree(xenstore, GUEST)
    assert (list(tree.list()), tree.read("/name"), tree.read("/memory/target")) == ([], None, None)
    for path in ("/name", "/memory/target", "/device"):
        with pytest.raises(ProtocolError, match="Xen's own"):
            tree.write(path, b"lie")
        assert not tree.remove(path)
    tree.write("/a", b"1")
    assert tree.remove("/")
    assert store.read(0, f"{domain_folder(GUEST)}/memory/target") == b"262144"
    store.write(GUEST, f"{domain_folder(GUEST)}/qubes-tools/os", b"the folders stay, and can be written to")


def test_names_that_xenstore_cannot_have(xenstore: XenStore) -> None:
    tree = XenStoreTree(xenstore, GUEST)
    with pytest.raises(ProtocolError, match="EINVAL"):
        tree.write("/qubes-service/a.b", b"1")
    assert (tree.read("/qubes-service/a.b"), tree.remove("/qubes-service/a.b")) == (None, False)


def test_a_guest_that_fills_its_folder(served: tuple[Store, str], xenstore: XenStore) -> None:
    store, _ = served
    folder = f"{domain_folder(GUEST)}/qubes-tools"
    tree = XenStoreTree(xenstore, GUEST)
    for number in range(GUEST_ENTRIES_MAX + 1):
        store.write(GUEST, f"{folder}/{number}", b"x")
    with pytest.raises(ProtocolError, match="too many entries"):
        list(tree.list("/qubes-tools/"))
    for number in range(600):
        store.write(GUEST, f"{folder}/{number:010}", b"x")
    with pytest.raises(ProtocolError, match="too many entries"):  # more names than an answer holds
        list(tree.list("/qubes-tools/"))


def test_a_guest_that_nests_folders(served: tuple[Store, str], xenstore: XenStore) -> None:
    store, _ = served
    store.write(GUEST, f"{domain_folder(GUEST)}/qubes-tools" + "/a" * 200, b"deep")
    found = dict(XenStoreTree(xenstore, GUEST).list("/qubes-tools/"))
    assert all(len(path) <= 63 for path in found)
    assert b"deep" not in found.values()


def test_watches_of_a_guest_that_makes_changes_without_end(served: tuple[Store, str], xenstore: XenStore) -> None:
    store, _ = served
    tree = XenStoreTree(xenstore, GUEST)
    heard: list[str] = []
    tree.watch("/qubes-tools/", heard.append)
    for number in range(100):
        store.write(GUEST, f"{domain_folder(GUEST)}/qubes-tools/{number % 50}", b"x")
    xenstore.read("/")
    tree.dispatch()
    assert heard == ["/qubes-tools/"], "several changes are told as one"
    assert len(xenstore._changed) == 0


def test_a_guest_that_removes_its_own_folder_is_not_followed_elsewhere(
    served: tuple[Store, str], xenstore: XenStore
) -> None:
    store, _ = served
    store.remove(GUEST, f"{domain_folder(GUEST)}/qubes-tools")
    assert list(XenStoreTree(xenstore, GUEST).list("/qubes-tools/")) == []


def test_refusals_name_what_was_refused(xenstore: XenStore) -> None:
    with pytest.raises(RefusedError, match=r"refused WRITE of /local//x: EINVAL") as caught:
        xenstore.write("/local//x", b"1")
    assert caught.value.code == "EINVAL"


# -- what the host asks (design.md, B4)


def test_a_host_without_xenstore_has_no_stub_domains_and_nothing_to_prepare() -> None:
    host = XenStoreHost(lambda: "")
    assert (host.prepare(GUEST), host.stubdom_xid(GUEST), host.memory(GUEST)) == (False, -1, 0)


def test_a_xenstore_that_does_not_answer_is_no_error_for_who_asks_for_a_stub_domain(tmp_path: Path) -> None:
    host = XenStoreHost(lambda: str(tmp_path / "nothing"))
    assert (host.stubdom_xid(GUEST), host.memory(GUEST)) == (-1, 0)
    with pytest.raises(HypervisorError, match="is xenstored alive"):
        host.prepare(GUEST)


@pytest.mark.parametrize(
    ("value", "found"),
    [(b"9", 9), *((text, -1) for text in (b"0", b"", b"-3", b"9x", b" 9", b"32752", b"9" * 4000, b"\xff"))],
)
def test_stub_domains(served: tuple[Store, str], value: bytes, found: int) -> None:
    store, path = served
    store.write(0, f"{domain_folder(GUEST)}/image/device-model-domid", value)
    assert XenStoreHost(lambda: path).stubdom_xid(GUEST) == found


def test_no_stub_domain(served: tuple[Store, str]) -> None:
    host = XenStoreHost(lambda: served[1])
    assert [host.stubdom_xid(xid) for xid in (GUEST, 6, 0, -1, 2**40)] == [-1] * 5
    assert [host.memory(xid) for xid in (GUEST, 6, -1)] == [262144, 0, 0]


def test_a_host_filled_as_libxl_fills_it_for_a_stub_domain(served: tuple[Store, str]) -> None:
    store, path = served
    stubdom = 6
    store.add_domain(stubdom)
    store.write(0, f"{domain_folder(stubdom)}/target", b"%d" % GUEST)
    store.write(0, f"{domain_folder(stubdom)}/memory/target", b"131072")
    store.write(0, f"{domain_folder(GUEST)}/image/device-model-domid", b"%d" % stubdom)
    host = XenStoreHost(lambda: path)
    assert (host.stubdom_xid(GUEST), host.memory(host.stubdom_xid(GUEST))) == (stubdom, 131072)


def test_folders_are_prepared_once_more_without_harm(served: tuple[Store, str]) -> None:
    store, path = served
    host = XenStoreHost(lambda: path)
    assert host.prepare(GUEST)
    store.write(GUEST, f"{domain_folder(GUEST)}/qubes-tools/os", b"Linux")
    assert host.prepare(GUEST)
    assert store.permissions[f"{domain_folder(GUEST)}/qubes-tools"] == ["n0", f"b{GUEST}"]
    assert store.read(0, f"{domain_folder(GUEST)}/qubes-tools/os") == b"Linux"
    assert not host.prepare(0), "dom0 is no guest"


def test_where_xenstore_is(tmp_path: Path) -> None:
    sock, device, capabilities = (tmp_path / name for name in ("socket", "xenbus", "capabilities"))

    def find() -> str:
        return find_xenstore(str(sock), str(device), str(capabilities))

    assert find() == ""
    device.touch()
    assert find() == "", "a guest's own way is not the host's"
    capabilities.write_text("")
    assert find() == ""
    capabilities.write_text("control_d\n")
    assert find() == str(device)
    sock.touch()
    assert find() == str(sock)


def test_the_header_is_xens() -> None:
    assert encode(Message(Kind.SET_PERMS, 1, 2, b"x")) == struct.pack("<IIII", 14, 1, 2, 1) + b"x"


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_refusal(data: bytes) -> None:
    parser = Parser()
    with contextlib.suppress(ProtocolError):
        for message in parser.feed(data):
            assert len(message.body) <= BODY_MAX
    assert len(parser._buffer) <= len(data)
