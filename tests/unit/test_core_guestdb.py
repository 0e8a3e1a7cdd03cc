"""The guest DB as a value: paths, limits, removal of subtrees, watches; and what a VM is told of itself."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.guest_facts import list_guest_facts
from crannog.core.guestdb import (
    ENTRIES_MAX,
    GUEST_ENTRIES_MAX,
    PATH_MAX,
    VALUE_MAX,
    GuestDB,
    check_guest_may_write,
    check_path,
    differences,
)
from crannog.core.vms import LocalVM
from crannog.errors import DeniedError, ProtocolError
from tests.fakes import add_vm, new_registry, template_and_app

PATHS = st.lists(st.sampled_from(["a", "b", "c-1"]), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@pytest.mark.parametrize("path", ["/a", "/qubes-tools/os", "/A.b_c-d:e/9", "/" + "x" * 62])
def test_paths(path: str) -> None:
    assert check_path(path.encode()) == path


@pytest.mark.parametrize(
    "path", ["", "/", "a", "/a/", "//a", "/a//b", "/a b", "/a\0", "/ä", "/a\n", "/" + "x" * PATH_MAX, "/$x"]
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ProtocolError):
        check_path(path.encode("latin-1"))


@pytest.mark.parametrize("path", ["", "/", "/a/", "/a", "/a/b/"])
def test_folders_are_paths_where_they_may_be(path: str) -> None:
    assert check_path(path.encode(), may_be_folder=True) == path


@given(st.binary(max_size=80))
def test_no_bytes_lead_elsewhere(path: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert check_path(path) == path.decode("ascii")


def test_values_are_read_listed_and_removed() -> None:
    db = GuestDB({"/b/c": b"2", "/a": b"1"})
    db.write("/b/d", b"3")
    assert (db.read("/a"), db.read("/b"), db.read("/b/c")) == (b"1", None, b"2")
    assert list(db.list("/b/")) == [("/b/c", b"2"), ("/b/d", b"3")]
    assert [path for path, _ in db.list()] == ["/a", "/b/c", "/b/d"]
    assert not db.remove("/b"), "a folder is no entry"
    assert db.remove("/b/")
    assert not db.remove("/b/")
    assert [path for path, _ in db.list()] == ["/a"]


def test_limits() -> None:
    db = GuestDB()
    db.write("/qubes-tools/os", bytes(VALUE_MAX))
    with pytest.raises(ProtocolError, match="3073 bytes"):
        db.write("/qubes-tools/os", bytes(VALUE_MAX + 1))
    for number in range(GUEST_ENTRIES_MAX - 1):
        db.write(f"/features-request/x{number}", b"")
    with pytest.raises(ProtocolError, match="one too many"):
        db.write("/features-request/more", b"")
    db.write("/features-request/x0", b"what is there can be changed")
    db.write("/name", b"the host has room of its own")
    for number in range(ENTRIES_MAX - 1):
        db.write(f"/h/{number}", b"")
    with pytest.raises(ProtocolError, match="one too many"):
        db.write("/more", b"")


def test_where_a_guest_may_write() -> None:
    for path in ("/qubes-tools/os", "/features-request/gui"):
        check_guest_may_write(path)
    for path in ("/name", "/qubes-tools", "/qubes-service/x", "/"):
        with pytest.raises(DeniedError):
            check_guest_may_write(path)


def test_watches() -> None:
    db, told = GuestDB({"/a/b": b"", "/c": b""}), []
    one = db.watch("/a/", lambda path: told.append(("tree", path)))
    db.watch("/a/b", lambda path: told.append(("entry", path)))
    db.write("/a/b", b"1")
    db.write("/a/new", b"")
    db.write("/c", b"1")
    db.remove("/a/")
    db.unwatch(one)
    db.unwatch(one)
    db.write("/a/b", b"2")
    db.remove("/nothing")
    assert told == [
        ("tree", "/a/b"),
        ("entry", "/a/b"),
        ("tree", "/a/new"),
        ("tree", "/a/"),
        ("entry", "/a/"),
        ("entry", "/a/b"),
    ]


@given(st.dictionaries(PATHS, st.binary(max_size=3)), st.dictionaries(PATHS, st.binary(max_size=3)))
def test_differences_lead_from_one_content_to_the_other(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    db = GuestDB(before)
    for path, value in differences(before.items(), after.items()).items():
        if value is None:
            assert db.remove(path)
        else:
            db.write(path, value)
    assert dict(db.list()) == after


def facts(vm: LocalVM) -> dict[str, str]:
    return list_guest_facts(vm, timezone="Europe/Berlin", seed="c2VlZA==")


def test_what_an_appvm_is_told() -> None:
    registry = new_registry()
    template, work = template_and_app(registry)
    work.features |= {"service.crond": "1", "service.cups": "", "gui": "1"}
    template.features["service.other"] = "1"
    told = facts(work)
    assert told == {
        "/name": "work",
        "/type": "AppVM",
        "/qubes-vm-type": "AppVM",
        "/qubes-vm-updateable": "False",
        "/qubes-vm-persistence": "rw-only",
        "/qubes-base-template": "debian",
        "/qubes-debug-mode": "0",
        "/default-user": "user",
        "/qubes-timezone": "Europe/Berlin",
        "/qubes-random-seed": "c2VlZA==",
        "/keyboard-layout": told["/keyboard-layout"],
        "/qubes-service/crond": "1",
        "/qubes-service/cups": "0",
    }
    told = facts(template)
    assert (told["/qubes-vm-updateable"], told["/qubes-vm-persistence"]) == ("True", "full")
    assert "/qubes-base-template" not in told


def test_what_networks_are_told() -> None:
    registry = new_registry()
    template, work = template_and_app(registry)
    net = add_vm(registry, "AppVM", "sys-net", template)
    proxy = add_vm(registry, "AppVM", "sys-firewall", template)
    for vm in (net, proxy):
        vm.set("provides_network", value=True)
    net.set("netvm", None)
    proxy.set("netvm", net)
    work.set("netvm", proxy)
    assert facts(net)["/qubes-vm-type"] == "NetVM"
    assert facts(proxy)["/qubes-vm-type"] == "ProxyVM"
    assert "/qubes-ip" not in facts(net)
    told = facts(work)
    assert told["/qubes-ip"] == work.get("ip")
    assert told["/qubes-gateway"] == proxy.get("ip")
    assert (told["/qubes-primary-dns"], told["/qubes-secondary-dns"]) == ("10.139.1.1", "10.139.1.2")
    work.features["net.fake-ip"] = "192.168.1.2"
    assert facts(work)["/qubes-ip"] == "192.168.1.2"
