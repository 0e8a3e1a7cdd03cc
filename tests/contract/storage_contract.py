"""What every driver for the volumes of VMs keeps to, whatever its files or devices are.

A test module of a driver has fixtures `bench` and `small_bench` (see benches.Bench; the second one's pools are where it
takes little to have no room left), and a class that inherits this one.
"""

from tests.contract.storage_basics import BasicContract
from tests.contract.storage_imports import ImportContract
from tests.contract.storage_kills import KillContract
from tests.contract.storage_limits import LimitContract
from tests.contract.storage_walk import WalkContract


class StorageContract(BasicContract, ImportContract, LimitContract, KillContract, WalkContract):
    """All of it."""
