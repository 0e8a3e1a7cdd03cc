"""The guest DB in a real XenStore: the contract, and who may do what there."""

from collections.abc import Iterator

import pytest

from crannog.adapters.guestdb.host import XenStoreHost
from crannog.adapters.guestdb.places import DEVICE, find_xenstore
from crannog.adapters.guestdb.tree import STORE_VALUE_MAX, XenStoreTree, domain_folder, prepare
from crannog.adapters.guestdb.xenstore import XenStore
from tests.contract.guestdb_contract import *  # noqa: F403 - the tests
from tests.contract.guestdb_contract import Bench
from tests.xen.home import run

SENTINEL = "/local/crannog-sentinel"
DOMAIN = 31000
"""A number that no domain here has."""


@pytest.fixture(params=["socket", "device"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    store = XenStore(find_xenstore() if request.param == "socket" else DEVICE)
    store.make(SENTINEL)
    store.watch(SENTINEL, "0")
    await_sentinel(store)
    store.make(domain_folder(DOMAIN))
    prepare(store, DOMAIN)
    tree = XenStoreTree(store, DOMAIN)

    def settle() -> None:
        store.write(SENTINEL, b"")  # what was changed before is told before this
        await_sentinel(store)
        tree.dispatch()

    yield Bench(tree, settle, STORE_VALUE_MAX)
    store.remove(domain_folder(DOMAIN))
    store.remove(SENTINEL)
    store.close()


def await_sentinel(store: XenStore) -> None:
    """Wait until the watch of the sentinel has told something. The kernel tells of watches after it has answered."""
    while store._changed.pop("0", None) is None:
        assert store._is_readable(30)
        store._receive()


def test_this_host_has_a_xenstore() -> None:
    assert find_xenstore() == "/run/xenstored/socket"


def test_xens_own_tools_see_what_we_write(bench: Bench) -> None:
    bench.tree.write("/qubes-vm-type", b"AppVM")
    assert run("xenstore-read", f"{domain_folder(DOMAIN)}/qubes-vm-type") == "AppVM\n"
    run("xenstore-write", f"{domain_folder(DOMAIN)}/qubes-tools/os", "Linux")
    assert bench.tree.read("/qubes-tools/os") == b"Linux"


def test_a_real_dom0_has_no_stub_domain() -> None:
    host = XenStoreHost()
    assert (host.stubdom_xid(0), host.stubdom_xid(DOMAIN)) == (-1, -1)
    assert not host.prepare(0)


def test_a_stub_domain_as_libxl_writes_it_down(bench: Bench) -> None:
    del bench
    run("xenstore-write", f"{domain_folder(DOMAIN)}/image/device-model-domid", "9")
    run("xenstore-write", f"{domain_folder(DOMAIN)}/memory/target", "131072")
    assert (XenStoreHost().stubdom_xid(DOMAIN), XenStoreHost().memory(DOMAIN)) == (9, 131072)
