"""What a driver says of itself, beside its pools. A class that says what it is called is registered by that."""

import importlib
import os
import pkgutil
from functools import cache
from typing import ClassVar

from crannog.config import Paths
from crannog.core.pools import PoolConfig, PoolOption
from crannog.core.volumes import Volume
from crannog.errors import StorageError, ValueRefusedError
from crannog.ports.storage import Pool

_PACKAGE = __name__.rpartition(".")[0]


class PoolDriver:
    """One kind of pools. A driver is a module of this package with a class that inherits this one, directly or not."""

    driver = ""
    options: ClassVar[tuple[PoolOption, ...]] = ()
    registered: ClassVar[dict[str, type["PoolDriver"]]] = {}

    def __init_subclass__(cls) -> None:
        """Register the class, if it is a driver's and not what several have in common."""
        if "driver" in cls.__dict__:
            PoolDriver.registered[cls.driver] = cls

    def can_copy_session(self, volume: Volume) -> bool:
        """Tell whether what a session has written can be copied: not by drivers that do not say so."""
        del volume
        return False

    async def copy_session(self, volume: Volume, path: str) -> None:
        """Raise StorageError: see `can_copy_session`."""
        raise StorageError(f"what was written to volume {volume.vid} cannot be copied to {path} by its pool's driver")

    async def start_from(self, volume: Volume, path: str) -> None:
        """Raise StorageError: see `can_copy_session`."""
        raise StorageError(f"volume {volume.vid} cannot begin with what {path} holds in its pool")

    @classmethod
    def folder_of(cls, config: PoolConfig, paths: Paths) -> str:
        """Return the folder in which such a pool is; empty when it is in none."""
        del config, paths
        return ""

    @classmethod
    def open(cls, config: PoolConfig, paths: Paths) -> Pool | None:
        """Return the pool, or None when this host cannot serve it, or it holds no volumes of VMs. Does no I/O."""
        del config, paths
        return None

    @classmethod
    def make_place(cls, config: PoolConfig, paths: Paths) -> None:
        """Make what a new pool needs, or nothing; raises StorageError or ValueRefusedError."""
        del paths
        raise ValueRefusedError(f"there is one pool of driver {config.driver} only, which is there already")

    @classmethod
    def unmake_place(cls, config: PoolConfig, paths: Paths) -> None:
        """Take away what `make_place` made, if nothing is in it."""

    @classmethod
    def space(cls, config: PoolConfig, paths: Paths) -> tuple[int, int] | None:
        """Return size and usage of where the pool is, in bytes; None when that cannot be said.

        Of a folder it is those of its file system (statvfs(3)).
        """
        folder = cls.folder_of(config, paths)
        if not folder or not os.path.isdir(folder):
            return None
        status = os.statvfs(folder)
        return status.f_blocks * status.f_frsize, (status.f_blocks - status.f_bfree) * status.f_frsize


def find_drivers() -> dict[str, type[PoolDriver]]:
    """Return all drivers by their names."""
    _import_all()
    return PoolDriver.registered


@cache
def _import_all() -> None:
    """Import every module of this package, so that none must be listed."""
    for module in pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__):
        importlib.import_module(f"{_PACKAGE}.{module.name}")
