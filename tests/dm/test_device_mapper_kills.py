"""Driver device-mapper when its daemon is killed between any two steps, and whatever is done in whatever order."""

from tests.contract.benches import IN_PLACE, KEEPING
from tests.contract.storage_kills import CHANGES
from tests.dm.dm_bench import WithDevices
from tests.dm.kills import ACTS, LayerKills, ShortKills, ShortWalks, changes, layers


@changes(*((name, KEEPING) for name in sorted(CHANGES)), ("import_file", IN_PLACE), ("session", IN_PLACE))
class TestKills(WithDevices, ShortKills):
    """What all drivers do."""


@layers(*ACTS)
class TestLayerKills(WithDevices, LayerKills):
    """Layers that are kept or only read; former content, which is read through devices here."""


class TestWalks(WithDevices, ShortWalks):
    """What all drivers do."""
