"""Driver device-mapper keeps to what all drivers keep to."""

from tests.contract.storage_basics import BasicContract
from tests.contract.storage_imports import ImportContract
from tests.contract.storage_layers import LayerContract
from tests.contract.storage_limits import LimitContract
from tests.dm.dm_bench import WithDevices


class TestContract(WithDevices, BasicContract, ImportContract, LimitContract, LayerContract):
    """On real devices; kills and walks are in test_device_mapper_kills."""
