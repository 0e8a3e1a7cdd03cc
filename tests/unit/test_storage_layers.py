"""Debug mode's layers (design.md, B2) with the drivers that work anywhere; the domains' side is in test_core_layers."""

from pathlib import Path

import pytest

from crannog.adapters.storage.folders import FolderPool
from crannog.adapters.storage.plain import PlainPool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from tests.contract.benches import FolderBench
from tests.contract.storage_layers import LayerContract


class Anywhere(LayerContract):
    """Pools in a folder of the tests."""

    driver: type[FolderPool]

    @pytest.fixture
    def bench(self, tmp_path: Path) -> FolderBench:
        return FolderBench(self.driver, tmp_path / "pools")


class TestQcow2(Anywhere):
    driver = Qcow2Pool


class TestPlain(Anywhere):
    driver = PlainPool
