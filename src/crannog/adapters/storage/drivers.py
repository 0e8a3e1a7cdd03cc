"""Which driver serves which pool."""

from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.config import Paths
from crannog.core.pools import DEFAULT_POOL
from crannog.ports.storage import Pool


def open_pools(paths: Paths) -> dict[str, Pool]:
    """Return the pools that this host can serve, by name."""
    return {DEFAULT_POOL: Qcow2Pool(DEFAULT_POOL, f"{paths.pools}/{DEFAULT_POOL}")}
