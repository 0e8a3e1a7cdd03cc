"""Driver device-mapper keeps to what all drivers keep to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.storage_contract import StorageContract
from tests.contract.storage_layers import LayerContract
from tests.dm.dm_bench import DmBench, dm_bench
from tests.mounts import small_file_system


class TestContract(StorageContract, LayerContract):
    """All of it, on real devices."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[DmBench]:
        with dm_bench(tmp_path / "pools") as bench:
            yield bench

    @pytest.fixture
    def small_bench(self, tmp_path: Path) -> Iterator[DmBench]:
        with small_file_system(tmp_path / "small", "8m") as folder, dm_bench(folder) as bench:
            yield bench
