"""Which driver serves which pool."""

import re
from collections.abc import Iterable

from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.config import Paths
from crannog.core.pools import PoolConfig
from crannog.ports.storage import Pool

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def open_pools(paths: Paths, configs: Iterable[PoolConfig]) -> dict[str, Pool]:
    """Return the pools among `configs` that this host can serve, by name.

    A file that was brought here can have pools of the same names with drivers that mean something on another host
    only: those are not served, and their volumes are left alone.
    """
    return {
        config.name: Qcow2Pool(config.name, f"{paths.pools}/{config.name}")
        for config in configs
        if config.driver == Qcow2Pool.driver and _FOLDER.fullmatch(config.name)
    }
