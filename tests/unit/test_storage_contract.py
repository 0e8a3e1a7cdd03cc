"""The drivers that need no special file system keep to what all drivers keep to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.storage.folders import FolderPool
from crannog.adapters.storage.plain import PlainPool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from tests.contract.benches import FolderBench
from tests.contract.storage_contract import StorageContract
from tests.contract.storage_folders import FolderContract
from tests.mounts import small_file_system


class OnAnyFileSystem(StorageContract, FolderContract):
    """Pools in a folder of the tests; small ones on a file system of 8 MiB."""

    driver: type[FolderPool]

    @pytest.fixture
    def bench(self, tmp_path: Path) -> FolderBench:
        return FolderBench(self.driver, tmp_path / "pools")

    @pytest.fixture
    def small_bench(self, tmp_path: Path) -> Iterator[FolderBench]:
        with small_file_system(tmp_path / "small", "8m") as folder:
            yield FolderBench(self.driver, folder)


class TestQcow2(OnAnyFileSystem):
    driver = Qcow2Pool


class QuickCopies(Qcow2Pool):
    """Copies nothing, however little it is."""

    copied_whole = 0


class TestQcow2Bases(OnAnyFileSystem):
    driver = QuickCopies


class TestPlain(OnAnyFileSystem):
    driver = PlainPool
