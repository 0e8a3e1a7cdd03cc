"""Which driver serves which pool."""

import os
from collections.abc import Iterable
from contextlib import suppress

from crannog.adapters.storage.files import failure, make_empty, sync
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.storage.qcow2 import MARK, Qcow2Pool
from crannog.config import Paths
from crannog.core.pools import DEFAULTS, DIR_PATH, EPHEMERAL_VOLATILE, REVISIONS_TO_KEEP, PoolConfig, is_pool_name
from crannog.errors import StorageError, ValueRefusedError
from crannog.ports.storage import Pool

OPTIONS = {
    KernelPool.driver: (DIR_PATH,),
    Qcow2Pool.driver: (DIR_PATH, REVISIONS_TO_KEEP, EPHEMERAL_VOLATILE),
}


class Drivers:
    """The drivers, with the folders of one home (see ports.storage.PoolDrivers)."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def options(self) -> dict[str, tuple[str, ...]]:
        """Return the drivers with their options."""
        return OPTIONS

    def open(self, config: PoolConfig) -> Pool | None:
        """Return the pool, or None when this host cannot serve it, or it holds no volumes of VMs."""
        folder = self.folder(config)
        if config.driver != Qcow2Pool.driver or not folder:
            return None
        return Qcow2Pool(config.name, folder, is_elsewhere=bool(config.option(DIR_PATH)))

    def folder(self, config: PoolConfig) -> str:
        """Return the folder of a pool, empty when this host cannot serve it."""
        if config.driver == KernelPool.driver:
            return self._paths.kernels
        chosen = config.option(DIR_PATH)
        if config.driver != Qcow2Pool.driver or (chosen and not chosen.startswith("/")):
            return ""
        return chosen or (f"{self._paths.pools}/{config.name}" if is_pool_name(config.name) else "")

    def settings(self, config: PoolConfig) -> dict[str, str]:
        """Return the pool's configuration, with the folder and the defaults of its driver's options."""
        known = OPTIONS.get(config.driver, ())
        defaults = {name: DEFAULTS[name] for name in known if name in DEFAULTS}
        folder = self.folder(config)
        place = {DIR_PATH: folder} if folder else {}
        return {**defaults, **dict(config.options), **place, "driver": config.driver, "name": config.name}

    def space(self, config: PoolConfig) -> tuple[int, int] | None:
        """Return size and usage of the file system in which the pool's folder is (statvfs(3)), in bytes."""
        folder = self.folder(config)
        if not folder or not os.path.isdir(folder):
            return None
        status = os.statvfs(folder)
        return status.f_blocks * status.f_frsize, (status.f_blocks - status.f_bfree) * status.f_frsize

    def make(self, config: PoolConfig, others: list[PoolConfig]) -> Pool:
        """Make the pool's folder. One that the user chose must be empty, or have been a pool before."""
        pool = self.open(config)
        if pool is None:
            raise ValueRefusedError(f"there is one pool of driver {config.driver} only, which is there already")
        folder = self.folder(config)
        self._check_apart(folder, others)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if config.option(DIR_PATH):
                _mark(folder)
            sync(folder)
            sync(os.path.dirname(folder))
        except OSError as error:
            self.unmake(config)
            raise failure(f"pool {config.name} cannot be made in {folder}", error) from error
        return pool

    def _check_apart(self, folder: str, others: list[PoolConfig]) -> None:
        """Raise ValueRefusedError when the folder lies in that of another pool, or the other way round."""
        real = os.path.realpath(folder) + "/"
        places = [(other.name, os.path.realpath(self.folder(other)) + "/") for other in others if self.folder(other)]
        for name, place in places:
            if real.startswith(place) or place.startswith(real):
                raise ValueRefusedError(f"{folder} and pool '{name}' would be in one another; choose another dir_path")

    def unmake(self, config: PoolConfig) -> None:
        """Delete the pool's folder with its mark, unless there is anything else in it."""
        folder = self.folder(config)
        with suppress(OSError):
            if os.listdir(folder) == [MARK]:
                os.unlink(os.path.join(folder, MARK))
            os.rmdir(folder)


def _mark(folder: str) -> None:
    entries = os.listdir(folder)
    if MARK in entries:
        return
    if entries:
        raise StorageError(f"{folder} is not empty and no pool's folder; choose a folder that is new or empty")
    make_empty(os.path.join(folder, MARK), 0)


def open_pools(paths: Paths, configs: Iterable[PoolConfig]) -> dict[str, Pool]:
    """Return the pools among `configs` that this host can serve, by name.

    A file that was brought here can have pools of the same names with drivers that mean something on another host
    only: those are not served, and their volumes are left alone.
    """
    drivers = Drivers(paths)
    return {config.name: pool for config in configs if (pool := drivers.open(config))}
