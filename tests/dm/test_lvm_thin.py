"""Driver lvm-thin in a machine that has device-mapper: the contract of all drivers, but for kills and random walks."""

from tests.contract.storage_basics import BasicContract
from tests.contract.storage_imports import ImportContract
from tests.contract.storage_layers import LayerContract
from tests.contract.storage_limits import LimitContract
from tests.dm.lvm_bench import InThinPool


class TestContract(InThinPool, BasicContract, ImportContract, LimitContract, LayerContract):
    """What all drivers keep to."""
