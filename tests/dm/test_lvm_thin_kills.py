"""Driver lvm-thin when its daemon is killed between any two steps, and whatever is done in whatever order."""

from collections.abc import Iterator

import pytest

from crannog.adapters.storage.lvm_commands import Place
from tests.contract.benches import IN_PLACE, KEEPING
from tests.dm.kills import LayerKills, ShortKills, ShortWalks, changes, layers
from tests.dm.lvm_bench import InThinPool, LvmBench


@changes(
    ("clone", KEEPING),
    ("come and go", KEEPING),
    ("finish_import", KEEPING),
    ("import_file", KEEPING),
    ("layer", KEEPING),
    ("revert", KEEPING),
    ("session", KEEPING),
    ("session", IN_PLACE),
)
class TestKills(InThinPool, ShortKills):
    """Old or new content, and nothing half-made.

    Others of the contract's changes have the same steps here: clearing and copying make one LV as going back does, and
    each of these deletes older ones in the end.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LvmBench]:
        """Return one for all, as it takes long to make the volumes."""
        made = LvmBench(place, tmp_path_factory.mktemp("home"))
        yield made
        made.close()


@layers("kept layer", "read-only layer")
class TestLayerKills(InThinPool, LayerKills):
    """Layers that are kept or only read."""


class TestWalks(InThinPool, ShortWalks):
    """Random walks."""
