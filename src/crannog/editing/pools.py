"""Pools that come and go. One that was added is served at once: who works with volumes shares the mapping of pools."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from crannog.core import events, rules
from crannog.core.pools import KERNEL_POOL, PoolConfig, new_pool
from crannog.core.registry import Registry
from crannog.editing.editor import Editor
from crannog.errors import NotYetError, PoolInUseError
from crannog.ports.storage import Pool, PoolDrivers


@dataclass(frozen=True)
class PoolUsage:
    """What the volumes of the store in one pool are and take; None for what this host cannot say. Sizes are in bytes.

    `space` is size and usage of where the pool is. `virtual` is what the guests see of the volumes, `real` what they
    take.
    """

    driver: str
    space: tuple[int, int] | None
    volumes: int
    virtual: int | None = None
    real: int | None = None


class Pools:
    """The pools of one registry. Pools are named; methods raise KeyError for one that does not exist."""

    def __init__(self, editor: Editor, pools: MutableMapping[str, Pool], drivers: PoolDrivers) -> None:
        self._editor = editor
        self._pools = pools
        self._drivers = drivers

    @property
    def _registry(self) -> Registry:
        return self._editor.registry

    def drivers(self) -> Mapping[str, tuple[str, ...]]:
        """Return the names of the drivers, each with those of its options."""
        return {driver: tuple(option.name for option in known) for driver, known in self._drivers.options().items()}

    def settings(self, name: str) -> dict[str, str]:
        """Return what is configured of a pool, defaults too."""
        return self._drivers.settings(self._registry.pools[name])

    def space(self, name: str) -> tuple[int, int] | None:
        """Return size and usage of where a pool is, in bytes; None when that cannot be said."""
        return self._drivers.space(self._registry.pools[name])

    def usage(self, name: str) -> PoolUsage:
        """Return what the store's volumes in a pool take; raises StorageError. Of kernels, it is only how many."""
        driver, space = self._registry.pools[name].driver, self.space(name)
        if name == KERNEL_POOL:
            return PoolUsage(driver, space, len(self._registry.kernels))
        held = [volume for vm in self._registry for volume in vm.volumes.values() if volume.pool == name]
        pool = self._pools.get(name)
        real = sum(map(pool.usage, held)) if pool else None
        return PoolUsage(driver, space, len(held), sum(volume.size for volume in held), real)

    def volumes(self, name: str) -> list[str]:
        """Return the ids of a pool's volumes; those of linux-kernel are the kernels' names."""
        registry = self._registry
        if name == KERNEL_POOL:
            return sorted(registry.kernels)
        return sorted(volume.vid for vm in registry for volume in vm.volumes.values() if volume.pool == name)

    def add(self, name: str, driver: str, options: Mapping[str, str]) -> None:
        """Make a pool, or nothing: raises ValueRefusedError, NotYetError, PoolInUseError or StorageError."""
        config = self._check(name, driver, options)
        pool = self._drivers.make(config, list(self._registry.pools.values()))
        try:
            with self._editor.change(self._registry) as told:
                self._registry.add_pool(config)
                self._pools[name] = pool
                told.extend(events.pool_added(name))
        except BaseException:
            self._pools.pop(name, None)
            self._drivers.unmake(config)
            raise

    def _check(self, name: str, driver: str, options: Mapping[str, str]) -> PoolConfig:
        config = new_pool(name, driver, options, self._drivers.options()[driver])
        self._registry.check_pool_name_is_free(name)
        return config

    def remove(self, name: str) -> None:
        """Forget a pool that nothing refers to; raises PoolInUseError. No file with data is deleted."""
        config = self._registry.pools[name]
        if name == KERNEL_POOL:
            raise PoolInUseError(f"pool '{name}' is built in: VMs get their kernels from it")
        rules.pool_removal(self._registry, name)
        with self._editor.change(self._registry) as told:
            del self._registry.pools[name]
            self._registry.foreign.pop(f"pool:{name}", None)
            told.extend(events.pool_removed(name))
        self._pools.pop(name, None)
        self._drivers.unmake(config)

    def set_option(self, name: str, key: str, text: str) -> None:
        """Change an option of a pool; raises ValueRefusedError or NotYetError."""
        config = self._registry.pools[name]
        known = {option.name: option for option in self._drivers.options().get(config.driver, ())}
        if key not in known or not known[key].is_changeable:
            raise NotYetError(f"{key} of pool '{name[:80]}' cannot be changed: its driver, {config.driver}, has none")
        changed = config.with_option(key, known[key].check(text))
        with self._editor.change(self._registry):
            self._registry.pools[name] = changed
