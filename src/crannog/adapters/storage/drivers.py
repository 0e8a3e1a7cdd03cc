"""Which driver serves which pool."""

import os
from collections.abc import Iterable

from crannog.adapters.storage.pool_driver import PoolDriver, find_drivers
from crannog.config import Paths
from crannog.core.pools import DIR_PATH, PoolConfig, PoolOption
from crannog.errors import StorageError, ValueRefusedError
from crannog.ports.storage import Pool


class Drivers:
    """The drivers, with the folders of one home (see ports.storage.PoolDrivers)."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def options(self) -> dict[str, tuple[PoolOption, ...]]:
        """Return the drivers with their options."""
        return {name: driver.options for name, driver in sorted(find_drivers().items())}

    def open(self, config: PoolConfig) -> Pool | None:
        """Return the pool, or None when this host cannot serve it, or it holds no volumes of VMs."""
        return _driver_of(config).open(config, self._paths)

    def folder(self, config: PoolConfig) -> str:
        """Return the folder of a pool, empty when this host cannot serve it, or it is in none."""
        return _driver_of(config).folder_of(config, self._paths)

    def settings(self, config: PoolConfig) -> dict[str, str]:
        """Return the pool's configuration, with the folder and the defaults of its driver's options."""
        defaults = {option.name: option.default for option in _driver_of(config).options if option.default}
        folder = self.folder(config)
        place = {DIR_PATH: folder} if folder else {}
        return {**defaults, **dict(config.options), **place, "driver": config.driver, "name": config.name}

    def space(self, config: PoolConfig) -> tuple[int, int] | None:
        """Return size and usage of where the pool is, in bytes; None when that cannot be said."""
        return _driver_of(config).space(config, self._paths)

    def make(self, config: PoolConfig, others: list[PoolConfig]) -> Pool:
        """Make the pool's place, which is in no other pool's folder."""
        driver = _driver_of(config)
        folder = self.folder(config)
        if folder and driver.open(config, self._paths):
            self._check_apart(folder, others)
        driver.make_place(config, self._paths)
        pool = driver.open(config, self._paths)
        if pool is None:
            raise StorageError(f"pool {config.name} was made and cannot be opened")
        return pool

    def _check_apart(self, folder: str, others: list[PoolConfig]) -> None:
        """Raise ValueRefusedError when the folder lies in that of another pool, or the other way round."""
        real = os.path.realpath(folder) + "/"
        places = [(other.name, os.path.realpath(self.folder(other)) + "/") for other in others if self.folder(other)]
        for name, place in places:
            if real.startswith(place) or place.startswith(real):
                raise ValueRefusedError(f"{folder} and pool '{name}' would be in one another; choose another dir_path")

    def unmake(self, config: PoolConfig) -> None:
        """Take away the pool's place, if nothing is in it."""
        _driver_of(config).unmake_place(config, self._paths)


def _driver_of(config: PoolConfig) -> type[PoolDriver]:
    """Return the driver of a pool; of one that means something on another host only, a driver that does nothing."""
    return find_drivers().get(config.driver, PoolDriver)


def open_pools(paths: Paths, configs: Iterable[PoolConfig]) -> dict[str, Pool]:
    """Return the pools among `configs` that this host can serve, by name.

    A file that was brought here can have pools of the same names with drivers that mean something on another host
    only: those are not served, and their volumes are left alone.
    """
    drivers = Drivers(paths)
    return {config.name: pool for config in configs if (pool := drivers.open(config))}
