"""Targets: what guests write to their DB, announce and ask for, and what they are told; parse(serialise(x)) == x."""

import functools
import os
import tempfile
from contextlib import suppress

from crannog.core import features_request
from crannog.core.announcement import (
    PREFIX,
    TEXT_MAX,
    AgentState,
    AgentStatus,
    Announcement,
    is_user_name,
    parse_announcement,
)
from crannog.core.features import check_feature
from crannog.core.guest_facts import list_guest_facts
from crannog.core.guestdb import (
    GUEST_FOLDERS,
    PATH_MAX,
    GuestDB,
    check_guest_may_write,
    check_path,
    differences,
    is_entry,
)
from crannog.core.vms import LocalVM
from crannog.errors import DeniedError, ProtocolError
from crannog.guest.agent import DatabaseCopy
from crannog.rpc import frames
from crannog.rpc.guest_tree import GuestTree
from tests.fakes import new_registry, template_and_app
from tests.fuzz.guest_bytes import PATHS
from tests.fuzz.taken import Taken

# -- the guest DB


class Told:
    """An agent's copy, in a folder, of what a tree tells it."""

    def __init__(self, folder: str) -> None:
        self.copy = DatabaseCopy(folder)
        self.copy.begin()

    def take(self, stream: int, kind: int, body: bytes) -> None:
        """Do what the agent does with a frame."""
        assert stream == 0
        if kind == frames.GUESTDB_WRITE:
            self.copy.write(body)
        elif kind == frames.GUESTDB_REMOVE:
            self.copy.remove(body)
        else:
            assert (kind, body) == (frames.GUESTDB_READY, b"")
            self.copy.finish()

    def entries(self) -> dict[str, bytes]:
        """Return what programs of the guest find."""
        found = {}
        for name in self.copy._list():
            with open(f"{self.copy.folder}/{name}", "rb") as file:
                found[name.replace("%", "/")] = file.read()
        return found


def fuzz_guestdb(data: bytes) -> None:
    """Check that a guest changes its own folders alone, is told what there is, and that its copy has just that."""
    take, log = Taken(data), list[str]()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as outer:
        told = Told(f"{outer}/copy")
        tree = GuestTree(told.take, log.append)
        tree.db.write("/name", b"work")
        tree.begin(3)
        for _ in range(10 if take else 0):
            _change(take, tree)
        found = dict(tree.db.list())
        assert told.entries() == found
        assert found.pop("/name", b"work") in (b"work", b"host")
        assert all(path.startswith(GUEST_FOLDERS) and is_entry(path, value) for path, value in found.items())
        assert os.listdir(outer) == ["copy"]
        assert all(line.isprintable() for line in log)
        _check_copy_alone(take, outer)


def _change(take: Taken, tree: GuestTree) -> None:
    path, value = take.one_of(PATHS) + take.block(70), take.block() * take.one_of((1, 1, 20))
    act = take.number(4)
    before = dict(tree.db.list())
    if act == 0:
        tree.take(frames.GUESTDB_REMOVE, path)
    elif act == 1:
        tree.db.write("/name", b"host")
        before["/name"] = b"host"
    else:
        tree.take(frames.GUESTDB_WRITE, path + b"\0" + value)
    after = dict(tree.db.list())
    _check_differences(before, after)
    assert {key: text for key, text in after.items() if not key.startswith(GUEST_FOLDERS)} == {
        key: text for key, text in before.items() if not key.startswith(GUEST_FOLDERS)
    }
    with suppress(ProtocolError, DeniedError):
        checked = check_path(path)
        check_guest_may_write(checked)
        assert checked.encode() == path
        assert len(path) <= PATH_MAX
        assert ".." not in checked.split("/")


def _check_differences(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    db = GuestDB(before)
    for path, value in differences(before.items(), after.items()).items():
        if value is None:
            assert db.remove(path)
        else:
            db.write(path, value)
    assert dict(db.list()) == after


def _check_copy_alone(take: Taken, outer: str) -> None:
    """Check that even a host that sends anything makes the agent write to no other place."""
    copy = DatabaseCopy(f"{outer}/copy")
    body = take.rest(600)
    copy.write(body)
    copy.remove(body)
    copy.write(b"/" + body)
    copy.remove(b"/" + body.partition(b"\0")[0] + b"/")
    assert os.listdir(outer) == ["copy"]
    assert all(name.startswith("%") and "/" not in name for name in os.listdir(f"{outer}/copy"))


# -- announcements

_GOOD = {b"version": b"1", b"os": b"Linux", b"qrexec": b"1", b"gui": b"0", b"default-user": b"user"}


def fuzz_announcement(data: bytes) -> None:
    """Check that what comes of an announcement is short printable ASCII, and survives its line of JSON."""
    take = Taken(data)
    entries = {PREFIX + name: value for name, value in _GOOD.items()}
    for _ in range(4):
        name = take.one_of([*_GOOD, take.block(12)])
        if take.number(6):
            entries[PREFIX + name] = take.block()
        else:
            entries.pop(PREFIX + name, None)
    with suppress(ProtocolError):
        announced = parse_announcement(entries)
        _check_announcement(announced)
        assert announced.version.encode() == entries[PREFIX + b"version"]
        status = AgentStatus(take.one_of(list(AgentState)), announced)
        assert AgentStatus.parse(status.encode()) == status
    _check_status_line(take.rest())


def _check_announcement(announced: Announcement) -> None:
    for text in (announced.version, announced.os):
        assert 0 < len(text) <= TEXT_MAX
        assert text.isascii()
        assert text.isprintable()
    assert announced.qrexec in (True, False)
    assert not announced.default_user or is_user_name(announced.default_user)


def _check_status_line(untrusted_line: bytes) -> None:
    """Check what an RPC process that was taken over can make the daemon believe."""
    with suppress(ProtocolError):
        status = AgentStatus.parse(untrusted_line)
        assert isinstance(status.agent, AgentState)
        if status.announced:
            _check_announcement(status.announced)
        assert AgentStatus.parse(status.encode()) == status


# -- features that are asked for, and what is told

_NAMES = [*sorted(features_request.SWITCHES | features_request.TEXTS), *features_request.SUPPORTED, "service."]


def fuzz_features(data: bytes) -> None:
    """Check that features asked for are known names with harmless values, and the same when asked for again."""
    take = Taken(data)
    entries: dict[str, bytes] = {}
    for _ in range(1 + take.number(5)):
        name = take.one_of(_NAMES) + (take.block(60).decode("latin-1") if take.number(2) else "")
        entries[features_request.PREFIX + name] = take.one_of((b"1", b"0", b"", take.block(80)))
    with suppress(ProtocolError):
        wanted = features_request.parse_request(entries)
        for name, value in wanted.items():
            assert features_request.PREFIX + name in entries
            assert (name + value).isascii()
            assert (name + value).isprintable()
            assert len(value) <= features_request.TEXT_MAX
        again = {features_request.PREFIX + name: _as_asked(name, value) for name, value in wanted.items()}
        assert features_request.parse_request(again) == wanted
        _check_changes(take, wanted)


def _as_asked(name: str, value: str) -> bytes:
    return b"0" if name in features_request.SWITCHES and not value else value.encode()


def _check_changes(take: Taken, wanted: dict[str, str]) -> None:
    """Check that changes lead to what is wanted, and leave alone what a guest cannot ask for."""
    present = {"service.crond": "1", "internal": "", take.one_of(_NAMES) + "x": "1"}
    after = dict(present)
    for name, value in features_request.changes(present, wanted).items():
        if value is None:
            del after[name]
        else:
            after[name] = value
    assert wanted.items() <= after.items()
    assert {name for name in after if name.startswith(features_request.SUPPORTED)} <= wanted.keys()
    assert after["service.crond"] == "1"
    _check_facts(take, after)


@functools.cache
def _vm() -> LocalVM:
    return template_and_app(new_registry())[1]


def _check_facts(take: Taken, features: dict[str, str]) -> None:
    """Check that no feature changes what a VM is told of itself, but for its services."""
    vm = _vm()
    vm.features.clear()
    before = list_guest_facts(vm, timezone="UTC", seed="c2VlZA==")
    for name, value in {**features, f"service.{take.block(70).decode('latin-1')}": "1"}.items():
        with suppress(ProtocolError):
            check_feature(name, value)
            vm.features[name] = value
    told = list_guest_facts(vm, timezone="UTC", seed="c2VlZA==")
    assert before.items() <= told.items()
    assert all(path.startswith("/qubes-service/") for path in told.keys() - before.keys())
