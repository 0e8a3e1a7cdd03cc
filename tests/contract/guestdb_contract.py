"""What every guest DB keeps to (ports.guestdb.Tree): the one that Crannog keeps itself, XenStore, and its stand-in.

A module that wants these tests imports them all, and has a fixture `bench`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from crannog.core.guestdb import GUEST_ENTRIES_MAX, PATH_MAX, VALUE_MAX
from crannog.errors import ProtocolError
from crannog.ports.guestdb import Tree


@dataclass
class Bench:
    """A tree without entries, and what a watch needs to be heard."""

    tree: Tree
    settle: Callable[[], None] = lambda: None
    """Have all watchers called that are to be called because of what was done."""
    value_max: int = VALUE_MAX
    heard: list[str] = field(default_factory=list)

    def watch(self, path: str) -> int:
        number = self.tree.watch(path, self.heard.append)
        self.settle()
        assert self.heard == []
        return number

    def hears(self) -> list[str]:
        self.settle()
        heard, self.heard[:] = list(self.heard), []
        return heard


def test_contract_values(bench: Bench) -> None:
    tree = bench.tree
    assert (tree.read("/a"), list(tree.list())) == (None, [])
    tree.write("/b/c", b"2")
    tree.write("/a", b"")
    tree.write("/b/d", bytes(range(256)))
    assert (tree.read("/a"), tree.read("/b"), tree.read("/b/c")) == (b"", None, b"2")
    tree.write("/b/c", b"3")
    assert list(tree.list("/b/")) == [("/b/c", b"3"), ("/b/d", bytes(range(256)))]
    assert [path for path, _ in tree.list()] == ["/a", "/b/c", "/b/d"]
    assert [path for path, _ in tree.list("/b/d")] == ["/b/d"]


def test_contract_an_entry_may_have_others_below_it(bench: Bench) -> None:
    tree = bench.tree
    tree.write("/a", b"1")
    tree.write("/a/b", b"2")
    assert list(tree.list()) == [("/a", b"1"), ("/a/b", b"2")]
    assert tree.remove("/a")
    assert list(tree.list()) == [("/a/b", b"2")]


def test_contract_removal(bench: Bench) -> None:
    tree = bench.tree
    for path in ("/a", "/b/c", "/b/d/e", "/bb"):
        tree.write(path, b"x")
    assert not tree.remove("/b"), "a folder is no entry"
    assert not tree.remove("/nothing")
    assert tree.remove("/b/")
    assert not tree.remove("/b/")
    assert [path for path, _ in tree.list()] == ["/a", "/bb"]
    assert tree.remove("/a")
    assert not tree.remove("/a")
    assert tree.remove("/")
    assert list(tree.list()) == []


def test_contract_what_is_left_of_a_removed_entry(bench: Bench) -> None:
    tree = bench.tree
    tree.write("/a/b/c", b"x")
    tree.write("/a/d", b"y")
    assert tree.remove("/a/b/c")
    assert list(tree.list()) == [("/a/d", b"y")]


def test_contract_bounds(bench: Bench) -> None:
    tree = bench.tree
    tree.write("/a", bytes(bench.value_max))
    with pytest.raises(ProtocolError, match=f"{bench.value_max} are allowed"):
        tree.write("/a", bytes(bench.value_max + 1))
    assert tree.read("/a") == bytes(bench.value_max)
    long = "/" + "x" * (PATH_MAX - 1)
    tree.write(long, b"1")
    assert tree.read(long) == b"1"


def test_contract_guests_have_so_many_entries(bench: Bench) -> None:
    tree = bench.tree
    tree.write("/host", b"1")
    for number in range(GUEST_ENTRIES_MAX):
        tree.write(f"/qubes-tools/{number}", b"x")
    tree.write("/qubes-tools/5", b"changed")
    with pytest.raises(ProtocolError, match="one too many"):
        tree.write("/qubes-tools/more", b"x")
    tree.write("/host2", b"the host's entries are counted for themselves")
    assert len(list(tree.list("/qubes-tools/"))) == GUEST_ENTRIES_MAX
    assert tree.remove("/qubes-tools/")
    assert [path for path, _ in tree.list()] == ["/host", "/host2"]
    tree.write("/qubes-tools/more", b"x")


def test_contract_a_watch_hears_of_its_entry(bench: Bench) -> None:
    tree = bench.tree
    number = bench.watch("/a")
    tree.write("/b", b"1")
    assert bench.hears() == []
    tree.write("/a", b"1")
    assert bench.hears() == ["/a"]
    assert tree.remove("/a")
    assert bench.hears() == ["/a"]
    tree.unwatch(number)
    tree.unwatch(number)
    tree.write("/a", b"1")
    assert bench.hears() == []


def test_contract_a_watch_hears_of_all_below_a_folder(bench: Bench) -> None:
    tree = bench.tree
    tree.write("/f/old", b"1")
    bench.watch("/f/")
    tree.write("/f/a", b"1")
    assert bench.hears() == ["/f/a"]
    tree.write("/ff", b"1")
    assert bench.hears() == []
    assert tree.remove("/f/")
    assert set(bench.hears()) <= {"/f/", "/f/a", "/f/old"}
    tree.write("/f/b/c", b"1")
    assert bench.hears()
