"""The contract of guest DBs: the one that RPC processes keep, and XenStore's adapter over a stand-in for xenstored."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.guestdb.tree import STORE_VALUE_MAX, XenStoreTree, prepare
from crannog.adapters.guestdb.xenstore import XenStore
from crannog.core.guestdb import GuestDB
from tests.contract.guestdb_contract import *  # noqa: F403 - the tests
from tests.contract.guestdb_contract import Bench
from tests.xenstore_fake import serving


@pytest.fixture(params=["own", "xenstore"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "own":
        yield Bench(GuestDB())
        return
    with serving(tmp_path) as (store, path):
        store.add_domain(5)
        connection = XenStore(path)
        prepare(connection, 5)
        tree = XenStoreTree(connection, 5)

        def settle() -> None:
            connection.read("/")  # what was changed before was told before this is answered
            tree.dispatch()

        yield Bench(tree, settle, STORE_VALUE_MAX)
        connection.close()
